"""Steps that write the settings of the guard. The guard reads the file again when it changes."""

from __future__ import annotations

from pathlib import Path

from vllm_safe.common.file_steps import RemoveFile, WriteFile
from vllm_safe.common.steps import Step
from vllm_safe.contract.guard_file import PLAN_FILE, GuardPlan, read_plan


def guard_steps(plan: GuardPlan, path: Path = Path(PLAN_FILE)) -> tuple[Step, ...]:
    """Return the step that gives the guard this plan, or none if it has it already."""
    return () if _read_or_none(path) == plan else (WriteFile(path, plan.to_text()),)


def keep_guard_steps(why: str, path: Path = Path(PLAN_FILE)) -> tuple[Step, ...]:
    """Return the step after an error in the configuration: the last valid plan stays, and the guard reports `why`."""
    return guard_steps((_read_or_none(path) or GuardPlan())._replace(note=why), path)


def undo_guard_steps(path: Path = Path(PLAN_FILE)) -> tuple[Step, ...]:
    """Return the step that removes the plan."""
    return (RemoveFile(path),) if path.exists() else ()


def _read_or_none(path: Path) -> GuardPlan | None:
    try:
        return read_plan(str(path))
    except (OSError, ValueError):
        return None
