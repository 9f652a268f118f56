"""The steps of `vllm-safe apply`: what was decided, less what is already so."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vllm_safe import paths
from vllm_safe.apply.files import RemoveFile, WriteFile
from vllm_safe.apply.textfile import textfile_steps
from vllm_safe.apply.trial import mark_step
from vllm_safe.apply.units import TryRestart, missing_properties, remove_dropins
from vllm_safe.decide.limits import unit_of
from vllm_safe.launch.plan import Launch, launch_file

if TYPE_CHECKING:
    from vllm_safe.apply.steps import Step
    from vllm_safe.decide.prepare import Preparation
    from vllm_safe.host.start import Starts

EARLYOOM = "earlyoom.service"


def prepare_steps(plan: Preparation, shown: Mapping[str, Mapping[str, str]], earlyoom_env: str | None) -> tuple[Step, ...]:
    """The steps to where `plan` wants to be. `shown`: properties of units as they are; `earlyoom_env`: the file's text, or None."""
    return (*missing_properties(plan.units, shown), *_earlyoom_steps(plan.earlyoom, earlyoom_env), *_start_steps(plan))


def refusal_steps(name: str, what: str, do_next: str, *, again: bool = False, starts: Starts | None = None) -> tuple[Step, ...]:
    """The steps of a start that cannot work, for a reason outside of what is decided; `again`: it may work the next time."""
    log = (_starts_step(name, starts),) if starts else ()
    return (*log, WriteLaunch(Launch(name, what, do_next, again)))


def _starts_step(name: str, starts: Starts) -> Step:
    return WriteFile(paths.starts_file(name), starts.to_json())


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
    if plan.untried is not None:
        steps.append(mark_step(plan.untried))
    return (*steps, *textfile_steps(launch.textfile), _starts_step(launch.name, plan.starts), WriteLaunch(launch))


@dataclass(frozen=True)
class WriteLaunch:
    """Write the launch file. A refusal in it is said as well: who runs `vllm-safe apply NAME` by hand has no unit that says it."""

    launch: Launch

    def describe(self) -> str:
        """The step in one line."""
        return self._file().describe() + (f", which refuses: {self.launch.refusal}" if self.launch.refusal else "")

    def run(self) -> None:
        """Failure as WriteFile has it."""
        self._file().run()
        if self.launch.refusal:
            lines = [f"vllm-safe: {unit_of(self.launch.name)} cannot start: {self.launch.refusal}", f"  {self.launch.hint}"]
            sys.stderr.write("".join(f"{line}\n" for line in lines if line.strip()))

    def _file(self) -> WriteFile:
        return WriteFile(launch_file(self.launch.name), self.launch.to_json(), mode=0o640, group=paths.USER)
