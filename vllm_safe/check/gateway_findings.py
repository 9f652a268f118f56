"""Checks of what is in front of several models: the gateway, and the room that models on demand make for each other."""

from __future__ import annotations

from itertools import combinations

from vllm_safe.check.check_facts import active_units
from vllm_safe.check.machine_facts import MachineFacts
from vllm_safe.common.findings import Finding, failed, passed, warned
from vllm_safe.common.key_file import Key
from vllm_safe.decide.demand_units import GATEWAY_SERVICE
from vllm_safe.decide.server_address import host_and_port
from vllm_safe.decide.start_checks import (
    LOOPBACK,
)
from vllm_safe.room.room_decision import fit_together

_MOST_PAIRS = 6  # pairs of models that are listed


def check_gateway(at: MachineFacts) -> Finding | None:
    """Check that the gateway can run, is running, and requires a key if other machines can send requests."""
    section, key = at.config.gateway, at.seen.gateway_key
    if not section.enabled:
        return None
    listen = host_and_port(section.host, section.port)
    if not at.seen.aiohttp:
        return failed("the gateway is enabled, but python3-aiohttp is not installed", "apt install python3-aiohttp")
    if problem := _find_key_problem(section.host, key):
        return problem
    if not active_units(at.seen.units, [GATEWAY_SERVICE]):
        return warned("the gateway is enabled, but not running", f"systemctl enable --now {GATEWAY_SERVICE}")
    return passed(f"the gateway listens on {listen} for all models")


def _find_key_problem(host: str, key: Key | None) -> Finding | None:
    if key and key.hidden:
        return warned("the key of the gateway can only be checked by root", "Run: sudo vllm-safe check")
    if key and key.problem:
        return failed(key.problem, key.way_out)
    if not key and host not in LOOPBACK:
        return warned(f"the gateway listens on {host} without a key", "Set gateway.api_key_file.")
    return None


def check_room(at: MachineFacts) -> Finding | None:
    """Return the pairs of models that cannot be up together, judging by what they need, if one of them is on demand."""
    gateway = at.seen.gateway
    if gateway is None:
        return None
    pairs = [
        (one.name, other.name)
        for one, other in combinations(gateway.models, 2)
        if (one.on_demand or other.on_demand) and not fit_together((one, other), gateway)
    ]
    if not pairs:
        return passed("models on demand: any two models fit together")
    listed = ", ".join(f"{one} and {other}" for one, other in pairs[:_MOST_PAIRS]) + (", and others" if len(pairs) > _MOST_PAIRS else "")
    return passed(f"models on demand: these pairs do not fit together, so one makes room for the other: {listed}")
