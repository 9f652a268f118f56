"""Steps that tell the guard its settings. It reads the file again when it changes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vllm_safe.common.file_steps import RemoveFile, WriteFile
from vllm_safe.contract.guard_file import PLAN_FILE, GuardPlan, read_plan

if TYPE_CHECKING:
    from vllm_safe.common.steps import Step


def guard_steps(plan: GuardPlan, path: Path = Path(PLAN_FILE)) -> tuple[Step, ...]:
    """The step to this plan, if it is not what the guard has."""
    return () if _there(path) == plan else (WriteFile(path, plan.to_text()),)


def keep_guard_steps(why: str, path: Path = Path(PLAN_FILE)) -> tuple[Step, ...]:
    """The step after a mistake in the configuration: the last good plan stays, and the guard says `why`."""
    return guard_steps((_there(path) or GuardPlan())._replace(note=why), path)


def undo_guard_steps(path: Path = Path(PLAN_FILE)) -> tuple[Step, ...]:
    """The step that takes the plan away."""
    return (RemoveFile(path),) if path.exists() else ()


def _there(path: Path) -> GuardPlan | None:
    try:
        return read_plan(str(path))
    except (OSError, ValueError):
        return None
