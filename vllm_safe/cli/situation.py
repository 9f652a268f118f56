"""Reading everything that the checks of a model look at: for `apply`, which acts on it, and for commands that only look."""

from __future__ import annotations

from collections.abc import Mapping

from vllm_safe import paths
from vllm_safe.config.settings import Config
from vllm_safe.decide.limits import PROPERTIES, decide_units, unit_of
from vllm_safe.decide.prepare import SWAP_SERVICE, Situation
from vllm_safe.decide.serve import decide_environment, server_program
from vllm_safe.host.facts import Host
from vllm_safe.host.start import read_ground
from vllm_safe.host.systemd import environment_of, show

_SET = dict.fromkeys(name for names in PROPERTIES.values() for name in names)
_SHOWN = (
    "Id",
    *_SET,
    "NRestarts",
    "ActiveEnterTimestampMonotonic",
    "StatusText",
    "DropInPaths",
    "Environment",
    "EnvironmentFiles",
    "PassEnvironment",
)


def read_units(config: Config, host: Host, *more: str) -> dict[str, Mapping[str, str]]:
    """The properties of the units that we set, and of `more`, as systemd has them now."""
    return show([*decide_units(config, host), *more], _SHOWN)


def read_situation(config: Config, host: Host, name: str) -> Situation:
    """The facts about one start of the model `name`, which the config has."""
    model = config.models[name]
    units = read_units(config, host, unit_of(name), SWAP_SERVICE)
    environment = environment_of(units.get(unit_of(name), {}))
    ground = read_ground(
        name,
        server=server_program(model),
        path=decide_environment(config, host, name, environment)["PATH"].value,
        host=model.host,
        model=model.model,
        swap_file=config.swap.file,
        key_file=model.api_key_file,
        units=units,
        environment=environment,
    )
    return Situation(config, host, name, ground)


def read_earlyoom_env() -> str | None:
    """The text of the file that gives earlyoom its arguments, or None."""
    try:
        return paths.EARLYOOM_ENV.read_text(errors="surrogateescape")
    except OSError:
        return None
