"""The checklist of the machine for `vllm-safe check`. A check returns a finding, or None if there is nothing to check."""

from __future__ import annotations

from collections.abc import Callable

from vllm_safe.check.gateway_findings import check_gateway, check_room
from vllm_safe.check.hardware_findings import check_cards_of_machine, check_compiler, check_hard_disks, check_power_limits, check_rig
from vllm_safe.check.machine_facts import MachineFacts
from vllm_safe.check.memory_findings import (
    check_earlyoom,
    check_earlyoom_override,
    check_guard,
    check_overcommit,
    check_pressure,
    check_protection,
    check_recursive,
    check_total,
    check_tunables,
)
from vllm_safe.common.findings import Finding
from vllm_safe.decide.start_checks import (
    check_cgroups,
)

MACHINE: tuple[Callable[[MachineFacts], Finding | None], ...] = (
    check_cgroups,
    check_total,
    check_protection,
    check_recursive,
    check_pressure,
    check_guard,
    check_earlyoom,
    check_earlyoom_override,
    check_hard_disks,
    check_tunables,
    check_overcommit,
    check_compiler,
    check_cards_of_machine,
    check_power_limits,
    check_gateway,
    check_room,
)


def check_machine(at: MachineFacts) -> tuple[Finding, ...]:
    """Return the findings about the machine, which concern every model."""
    return (*(finding for check in MACHINE if (finding := check(at))), *check_rig(at.seen))
