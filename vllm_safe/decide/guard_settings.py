"""The guard's settings, as the guard reads them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm_safe.contract.guard_file import Plan, Step

if TYPE_CHECKING:
    from vllm_safe.config.settings import Config


def decide_guard(config: Config) -> Plan:
    """What the section `guard` says."""
    section = config.guard
    return Plan(
        enabled=section.enabled,
        squeeze=Step(section.squeeze_pressure / 100, section.squeeze_after),
        freeze=Step(section.freeze_pressure / 100, section.freeze_after),
        freeze_time=section.freeze_time,
        kill=Step(section.kill_pressure / 100, section.kill_after),
    )
