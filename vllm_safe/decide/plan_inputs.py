"""The inputs to the plan of a configured model: its command, and the memory that the host allows it."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from vllm_safe.config.arguments import NODE_OPTIONS
from vllm_safe.decide.limits import DecidedLimits
from vllm_safe.decide.serve_command import ServerCommand
from vllm_safe.host.host_facts import Host
from vllm_safe.plan.host_needs import HostLimits
from vllm_safe.plan.plan_facts import PlannedServer

_NONE: Mapping[str, Any] = MappingProxyType({})


def planned_server(name: str, model: str, server: ServerCommand, given: Mapping[str, Any] = _NONE) -> PlannedServer:
    """Return the server to plan for, for a configured model. given: options of `vllm serve` that replace its own."""
    left_out = NODE_OPTIONS if server.machines > 1 else ()
    args = {key: sourced.value for key, sourced in server.arguments.items() if key not in left_out} | dict(given)
    return PlannedServer(name, model, args, {key: sourced.value for key, sourced in server.environment.items()}, server.machines)


def host_limits(limits: DecidedLimits, host: Host) -> HostLimits:
    """Return the memory that the host allows a model."""
    return HostLimits(limits.memory_max.value, limits.swap_max.value, host.memory // 2)  # vllm@.service: /dev/shm has size=50%
