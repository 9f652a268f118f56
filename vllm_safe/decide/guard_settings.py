"""The settings of the guard, in the form that the guard reads."""

from __future__ import annotations

from vllm_safe.config.settings import Config
from vllm_safe.contract.guard_file import GuardPlan, Threshold


def decide_guard(config: Config) -> GuardPlan:
    """Return the guard's settings from the section `guard`, with percentages as shares of 1."""
    section = config.guard
    return GuardPlan(
        enabled=section.enabled,
        squeeze=Threshold(section.squeeze_pressure / 100, section.squeeze_after),
        freeze=Threshold(section.freeze_pressure / 100, section.freeze_after),
        freeze_time=section.freeze_time,
        kill=Threshold(section.kill_pressure / 100, section.kill_after),
    )
