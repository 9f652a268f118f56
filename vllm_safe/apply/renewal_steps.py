"""The step by which an edit of `gpu.power_limit` takes effect at the next start of any model."""

from __future__ import annotations

from pathlib import Path

from vllm_safe.apply.unit_steps import TryReload
from vllm_safe.common import paths
from vllm_safe.common.steps import Step
from vllm_safe.decide.start_checks import POWER_SERVICE
from vllm_safe.power.power_facts import PowerNote, read_power_note


def renew_power_steps(asked: str, notes: Path = paths.POWER) -> tuple[Step, ...]:
    """Return the step that has the unit follow the setting `asked`, if it followed another one.

    Before the first start of a model, systemd has started the unit by itself.
    """
    return () if (read_power_note(notes) or PowerNote()).asked == asked else (TryReload(POWER_SERVICE),)
