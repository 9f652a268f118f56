"""The start of one model, as rows that have each value and its origin."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from vllm_safe.common.kernfs import MODELS_SLICE
from vllm_safe.common.sizes import format_exact_span, format_size
from vllm_safe.config.settings import INNER_PORTS, Config
from vllm_safe.decide.limits import EACH_UNIT, SHARED, Budget, DecidedLimits, decide_budget
from vllm_safe.decide.origin import Origin, Sourced, origin_of
from vllm_safe.decide.protect import UNITS, Decided, Protection
from vllm_safe.decide.serve_command import decide_launch, decide_server
from vllm_safe.decide.server_address import health_url, host_and_port
from vllm_safe.decide.server_environment import decide_loader
from vllm_safe.host.host_facts import Host, SwapArea
from vllm_safe.power.power_decision import decide_power, named_as, watts
from vllm_safe.power.power_facts import PowerReading
from vllm_safe.tunables.tunable_decision import decide_tunables

_BYTES = ("memory_max", "swap_max")


@dataclass(frozen=True)
class ShownRow:
    """One value. `text` is its printed form, `value` its form in --json."""

    name: str
    value: Any
    text: str
    origin: str


@dataclass(frozen=True)
class ShownSection:
    """Rows under a heading."""

    title: str
    rows: tuple[ShownRow, ...]


def with_swap(config: Config, host: Host) -> Host:
    """Return the machine as it is once the configured swapfile has been created, which is what a first start finds."""
    swap = config.swap
    if swap.size is None or any(area.path == str(swap.file) for area in host.swaps):
        return host
    return replace(host, swaps=(*host.swaps, SwapArea(str(swap.file), "file", swap.size, 0)))


def decide_show(
    config: Config, host: Host, name: str, given: Mapping[str, str], power: PowerReading | None = None
) -> tuple[ShownSection, ...]:
    """Return the start of the model `name` in sections. The configuration has that model. given: Environment= of its unit.

    power: the power limits of the GPUs; None where none is configured. The sections are the addresses of a model on demand, limits,
    protection, kernel tunables, power limits, command and timeouts, arguments and environment.
    """
    budget, server = decide_budget(config, host), decide_server(config, host, name, given)
    launch = decide_launch(config, name, server, budget.of(name))
    model = config.models[name]
    command_origin = origin_of(config, f"models.{name}.command")
    command = ShownRow("argv", list(launch.argv), shlex.join(launch.argv), str(command_origin))
    health = ShownRow(
        "health", health_url(model), health_url(model), str(origin_of(config, f"models.{name}.health", f"models.{name}.port"))
    )
    weights = _row("load", decide_loader(config, name, server.arguments))
    return (
        *((ShownSection("On demand", _demand(config, name)),) if model.on_demand else ()),
        ShownSection("Limits", _limits(budget.of(name))),
        ShownSection("All models together", _slice(budget)),
        ShownSection("Kept for the system", _protection(budget.protection)),
        ShownSection("Kernel tunables while a model runs", _tunables(config, host)),
        *((ShownSection("Power limits while a model runs", _power(config, power)),) if power else ()),
        ShownSection(
            "Command",
            (command, health, weights, *(ShownRow(key, t.value, f"{t.value:g} s", str(t.origin)) for key, t in server.timeouts.items())),
        ),
        ShownSection("Arguments", tuple(_row(key, sourced) for key, sourced in server.arguments.items())),
        ShownSection("Environment", tuple(_row(key, sourced) for key, sourced in sorted(server.environment.items()))),
    )


def _demand(config: Config, name: str) -> tuple[ShownRow, ...]:
    model, path = config.models[name], f"models.{name}"
    clients, server = host_and_port(model.host, model.port), host_and_port(model.server_host, model.server_port)
    idle = "none" if model.idle_timeout is None else format_exact_span(model.idle_timeout)
    return (
        ShownRow("clients", clients, clients, str(origin_of(config, f"{path}.port"))),
        ShownRow("server", server, server, f"{INNER_PORTS} ports higher"),
        ShownRow("idle_timeout", model.idle_timeout, idle, str(origin_of(config, f"{path}.idle_timeout"))),
    )


def _limits(limits: DecidedLimits) -> tuple[ShownRow, ...]:
    return tuple(
        _row(key, decided) if isinstance(decided, Sourced) else _number(key, decided, in_bytes=key in _BYTES)
        for key, decided in vars(limits).items()
    )


def _slice(budget: Budget) -> tuple[ShownRow, ...]:
    properties = budget.units[MODELS_SLICE]
    origin = Origin(MODELS_SLICE, "the largest value of any model: all models share it")
    return tuple(_number(key, Decided(properties[key], origin), in_bytes=key.startswith("Memory")) for key in SHARED)


def _protection(protection: Protection) -> tuple[ShownRow, ...]:
    units = [_number(f"{UNITS[key]} MemoryMin", decided, in_bytes=True) for key, decided in protection.units.items()]
    each = _number(f"each unit {EACH_UNIT}", protection.each_unit, in_bytes=True)
    return (*units, each, _number("kernel", protection.kernel, in_bytes=True), _number("NVIDIA driver", protection.cards, in_bytes=True))


def _tunables(config: Config, host: Host) -> tuple[ShownRow, ...]:
    origin = str(origin_of(config, "tunables.lru_gen"))
    return tuple(ShownRow(path, value, value, origin) for path, value in decide_tunables(config, host.tunables).items())


def _power(config: Config, power: PowerReading) -> tuple[ShownRow, ...]:
    plan = decide_power(config, power.cards)
    problems = (power.problem,) if power.problem else plan.problems
    limited = [card for card in power.cards if card.uuid in plan.limits]
    return (
        *(
            ShownRow(
                card.title,
                plan.limits[card.uuid] / 1000,
                f"{watts(plan.limits[card.uuid])} (default {watts(card.default)}, now {watts(card.limit)})",
                str(origin_of(config, f"gpu.power_limit.{named_as(config, card)}", "gpu.power_limit")),
            )
            for card in limited
        ),
        *(ShownRow("not possible", problem, problem, str(origin_of(config, "gpu.power_limit"))) for problem in problems),
    )


def _number(name: str, decided: Decided, *, in_bytes: bool) -> ShownRow:
    text = f"{decided.value} ({format_size(decided.value)})" if in_bytes and decided.value else str(decided.value)
    return ShownRow(name, decided.value, text, str(decided.origin))


def _row(name: str, sourced: Sourced) -> ShownRow:
    value = sourced.value
    return ShownRow(name, value, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False), str(sourced.origin))
