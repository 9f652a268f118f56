"""What a start of one model would be, as rows that name each value and where it came from."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from vllm_safe.decide.limits import EACH_UNIT, SHARED, SLICE, decide_limits, decide_units
from vllm_safe.decide.origin import Origin, Sourced, origin_of
from vllm_safe.decide.protect import UNITS, Decided, decide_protection
from vllm_safe.decide.serve import (
    decide_arguments,
    decide_environment,
    decide_launch,
    decide_timeouts,
    health_url,
)
from vllm_safe.decide.tunables import decide_tunables
from vllm_safe.host.facts import Host, Swap
from vllm_safe.sizes import format_size

if TYPE_CHECKING:
    from vllm_safe.config.settings import Config

_BYTES = ("memory_max", "swap_max")


@dataclass(frozen=True)
class Row:
    """One value. `text` is how it is printed, `value` what --json has."""

    name: str
    value: Any
    text: str
    origin: str


@dataclass(frozen=True)
class Part:
    """Rows under a heading."""

    title: str
    rows: tuple[Row, ...]


def with_swap(config: Config, host: Host) -> Host:
    """The machine as it will be once the swapfile of the config is made: what a first start finds."""
    swap = config.swap
    if swap.size is None or any(area.path == str(swap.file) for area in host.swaps):
        return host
    return replace(host, swaps=(*host.swaps, Swap(str(swap.file), "file", swap.size, 0)))


def decide_show(config: Config, host: Host, name: str, given: Mapping[str, str]) -> tuple[Part, ...]:
    """The start of the model `name`, which the file must have: limits, protection, environment, arguments, command and timeouts.

    given: Environment= of its unit.
    """
    launch = decide_launch(config, host, name, given)
    model = config.models[name]
    environment = decide_environment(config, host, name, given)
    command_origin = origin_of(config, f"models.{name}.command")
    command = Row("argv", list(launch.argv), shlex.join(launch.argv), str(command_origin))
    health = Row("health", health_url(model), health_url(model), str(origin_of(config, f"models.{name}.health", f"models.{name}.port")))
    timeouts = decide_timeouts(config, name)
    return (
        Part("Limits", _limits(config, host, name)),
        Part("All models together", _slice(config, host)),
        Part("Kept for the system", _protection(config, host)),
        Part("Kernel tunables while a model runs", _tunables(config, host)),
        Part("Command", (command, health, *(Row(key, t.value, f"{t.value:g} s", str(t.origin)) for key, t in timeouts.items()))),
        Part("Arguments", tuple(_row(key, sourced) for key, sourced in decide_arguments(config, name).items())),
        Part("Environment", tuple(_row(key, sourced) for key, sourced in sorted(environment.items()))),
    )


def _limits(config: Config, host: Host, name: str) -> tuple[Row, ...]:
    limits = decide_limits(config, host, name)
    return tuple(
        _row(key, decided) if isinstance(decided, Sourced) else _number(key, decided, in_bytes=key in _BYTES)
        for key, decided in vars(limits).items()
    )


def _slice(config: Config, host: Host) -> tuple[Row, ...]:
    properties = decide_units(config, host)[SLICE]
    origin = Origin(SLICE, "the largest of any model's, so that two cannot add up to more")
    return tuple(_number(key, Decided(properties[key], origin), in_bytes=key.startswith("Memory")) for key in SHARED)


def _protection(config: Config, host: Host) -> tuple[Row, ...]:
    protection = decide_protection(config, host)
    units = [_number(f"{UNITS[key]} MemoryMin", decided, in_bytes=True) for key, decided in protection.units.items()]
    each = _number(f"each unit {EACH_UNIT}", protection.each_unit, in_bytes=True)
    return (*units, each, _number("kernel", protection.kernel, in_bytes=True), _number("NVIDIA driver", protection.cards, in_bytes=True))


def _tunables(config: Config, host: Host) -> tuple[Row, ...]:
    origin = str(origin_of(config, "tunables.lru_gen"))
    return tuple(Row(path, value, value, origin) for path, value in decide_tunables(config, host.tunables).items())


def _number(name: str, decided: Decided, *, in_bytes: bool) -> Row:
    text = f"{decided.value} ({format_size(decided.value)})" if in_bytes and decided.value else str(decided.value)
    return Row(name, decided.value, text, str(decided.origin))


def _row(name: str, sourced: Sourced) -> Row:
    value = sourced.value
    return Row(name, value, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False), str(sourced.origin))
