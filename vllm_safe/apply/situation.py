"""Read everything that the checks of a model depend on: for `apply`, which acts on it, and for commands that change nothing."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from vllm_safe.common import paths
from vllm_safe.common.errors import Failure, Misuse
from vllm_safe.common.systemctl import environment_of, show_properties
from vllm_safe.config.settings import Config
from vllm_safe.contract.gateway_file import GatewayFile, read_gateway_file
from vllm_safe.decide.gateway_settings import Claimant, GatewayFacts, decide_gateway
from vllm_safe.decide.limits import MANAGED_UNITS, PROPERTIES, Budget, unit_of
from vllm_safe.decide.plan_inputs import planned_server
from vllm_safe.decide.serve_command import ServerCommand, decide_server
from vllm_safe.decide.start_checks import POWER_SERVICE, SWAP_SERVICE, Situation
from vllm_safe.driver.card_facts import NvmlCard
from vllm_safe.driver.driver_facts import read_driver
from vllm_safe.earlyoom.earlyoom_arguments import EarlyoomFiles
from vllm_safe.host.demand_facts import read_demand_facts
from vllm_safe.host.host_facts import Host
from vllm_safe.host.start_facts import read_start_facts
from vllm_safe.plan.plan_facts import PlanFacts, read_plan_facts

_SET = dict.fromkeys(name for names in PROPERTIES.values() for name in names)
_SHOWN = (
    "Id",
    *_SET,
    "NRestarts",
    "ActiveState",
    "ActiveEnterTimestampMonotonic",
    "StatusText",
    "DropInPaths",
    "Environment",
    "EnvironmentFiles",
    "PassEnvironment",
    "TemporaryFileSystem",
)


def read_units(*more: str) -> dict[str, Mapping[str, str]]:
    """Return the present properties of the units whose limits vllm-safe sets, and of `more`, by unit."""
    return show_properties([*MANAGED_UNITS, *more], _SHOWN)


def read_situation(config: Config, host: Host, budget: Budget, name: str, cards: tuple[NvmlCard, ...] = ()) -> Situation:
    """Read the facts about one start of the model `name`. The configuration has that model. cards: those of the machine, if known."""
    model = config.models[name]
    units = read_units(unit_of(name), SWAP_SERVICE, POWER_SERVICE)
    environment = environment_of(units.get(unit_of(name), {}))
    server = decide_server(config, host, name, environment)
    facts = read_start_facts(
        name,
        server=server.program,
        path=server.environment["PATH"].value,
        host=model.host,
        model=model.model,
        swap_file=config.swap.file,
        key_file=model.api_key_file,
        units=units,
        environment=environment,
    )
    return Situation(config, host, name, budget, facts, server, _read_plan(name, model.model, server, cards), read_demand_facts())


def read_gateway(config: Config, config_path: Path, host: Host, budget: Budget) -> GatewayFile:
    """Read the facts about all models, and decide the gateway's settings from them."""
    cards = read_driver().nvml.cards if config.engine.package == "vllm" else ()
    units = show_properties(map(unit_of, config.models), ("Id", "Environment"))
    claimants = {}
    for name, model in config.models.items():
        server = decide_server(config, host, name, environment_of(units.get(unit_of(name), {})))
        claimants[name] = Claimant(server, _read_plan(name, model.model, server, cards))
    return decide_gateway(config, GatewayFacts(host, budget, cards, claimants))._replace(edited=config_path.stat().st_mtime)


def _read_plan(name: str, model: str | None, server: ServerCommand, cards: tuple[NvmlCard, ...]) -> PlanFacts | None:
    """Read the facts for the plan; None where GPUs or files are not known, or an option has a value that only vLLM can judge."""
    if model is None or not cards:
        return None
    with suppress(Failure, Misuse):
        return read_plan_facts(planned_server(name, model, server), cards)
    return None


def read_machine_room(config: Config, config_path: Path, host: Host, budget: Budget) -> GatewayFile:
    """Return the gateway's settings for a start, which has to be quick.

    They are those that `apply --gateway` wrote, unless the configuration has been edited since.
    """
    with suppress(OSError, ValueError):
        known = read_gateway_file()
        if known.edited == config_path.stat().st_mtime and bool(known.gpus) == bool(host.gpus):
            return known
    return read_gateway(config, config_path, host, budget)


def has_demand(config: Config) -> bool:
    """Return whether any model is on demand."""
    return any(model.on_demand for model in config.models.values())


def uses_gpus(config: Config, name: str) -> bool:
    """Return whether vLLM serves the model on GPUs."""
    return config.models[name].command is None and config.engine.package == "vllm"


def read_earlyoom() -> EarlyoomFiles:
    """Return the files of vllm-safe's that earlyoom has."""
    return EarlyoomFiles(_text(paths.EARLYOOM_ENV), _text(paths.EARLYOOM_DROPIN))


def _text(path: Path) -> str | None:
    try:
        return path.read_text(errors="surrogateescape")
    except OSError:
        return None
