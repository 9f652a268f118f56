"""The steps of `vllm-safe apply`: what was decided, less what is already so."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from vllm_safe import paths
from vllm_safe.apply.files import RemoveFile, WriteFile
from vllm_safe.apply.units import TryRestart, missing_properties, remove_dropins
from vllm_safe.launch.plan import Launch, launch_file

if TYPE_CHECKING:
    from vllm_safe.apply.steps import Step
    from vllm_safe.decide.prepare import Preparation

EARLYOOM = "earlyoom.service"


def prepare_steps(plan: Preparation, shown: Mapping[str, Mapping[str, str]], earlyoom_env: str | None) -> tuple[Step, ...]:
    """The steps to where `plan` wants to be. `shown`: properties of units as they are; `earlyoom_env`: the file's text, or None."""
    return (*missing_properties(plan.units, shown), *_earlyoom_steps(plan.earlyoom, earlyoom_env), *_start_steps(plan))


def refusal_steps(name: str, what: str, do_next: str, *, again: bool = False) -> tuple[Step, ...]:
    """The one step of a start that cannot work, for a reason outside of what is decided; `again`: it may work the next time."""
    return (_launch_step(Launch(name, what, do_next, again)),)


def undo_steps(dropins: tuple[Path, ...], earlyoom_env: str | None) -> tuple[Step, ...]:
    """The steps that take back everything that `apply` did and that outlives a start."""
    return (*remove_dropins(dropins), *_earlyoom_steps(None, earlyoom_env))


def _earlyoom_steps(wanted: str | None, there: str | None) -> tuple[Step, ...]:
    if wanted == there:
        return ()
    change: Step = RemoveFile(paths.EARLYOOM_ENV) if wanted is None else WriteFile(paths.EARLYOOM_ENV, wanted)
    return (change, TryRestart(EARLYOOM))


def _start_steps(plan: Preparation) -> tuple[Step, ...]:
    if not (launch := plan.launch):
        return ()
    steps: list[Step] = []
    key_file = paths.credential_file(launch.name)
    if plan.key:
        steps.append(WriteFile(key_file, plan.key, mode=0o600))
    elif plan.old_key:
        steps.append(RemoveFile(key_file))
    return (*steps, WriteFile(paths.starts_file(launch.name), plan.starts.to_json()), _launch_step(launch))


def _launch_step(launch: Launch) -> Step:
    return WriteFile(launch_file(launch.name), launch.to_json(), mode=0o640, group=paths.USER)
