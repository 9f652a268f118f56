"""The steps of `vllm-safe apply`: from the present state to the decided one."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from vllm_safe.apply.textfile import textfile_steps
from vllm_safe.apply.unit_steps import DaemonReload, SetProperties, TryRestart, remove_dropins
from vllm_safe.common import paths
from vllm_safe.common.file_steps import RemoveFile, WriteFile
from vllm_safe.common.steps import Step
from vllm_safe.contract.launch_file import Launch, launch_file
from vllm_safe.decide.limits import EACH_UNIT, are_in_force, unit_of
from vllm_safe.decide.preparation import Preparation
from vllm_safe.earlyoom.earlyoom_arguments import EarlyoomFiles
from vllm_safe.engine.trial_steps import mark_step
from vllm_safe.host.start_facts import Starts

EARLYOOM = "earlyoom.service"


def prepare_steps(plan: Preparation, shown: Mapping[str, Mapping[str, str]], earlyoom: EarlyoomFiles) -> tuple[Step, ...]:
    """Return the steps that bring `plan` about.

    shown: the present properties by unit. earlyoom_env: the text of earlyoom's environment file, or None.
    """
    return (*missing_properties(plan.units, shown), *_earlyoom_steps(plan.earlyoom, earlyoom), *_start_steps(plan))


def missing_properties(wanted: Mapping[str, Mapping[str, int]], shown: Mapping[str, Mapping[str, str]]) -> tuple[Step, ...]:
    """Return the steps for the units whose values in `shown` (systemctl show) differ from the wanted ones.

    A default for the units in a slice is set first, and running units get it at the reload. As the other values are set last, a run that
    is interrupted is followed by one that reloads again. A reload ends the steps if systemd would otherwise report that a unit changed on
    disk: it appends the drop-ins of set-property to its list, but those on disk are ordered by name, an administrator's override.conf
    after 50-MemoryMax.conf.
    """
    every = [(unit, name, value) for unit, properties in wanted.items() for name, value in properties.items()]
    defaults, others = (_missing([one for one in every if (one[1] == EACH_UNIT) is first], shown) for first in (True, False))
    reload = (DaemonReload(),) if any(EACH_UNIT in wanted[step.unit] for step in (*defaults, *others)) else ()
    last_reload = (DaemonReload(),) if any(_is_out_of_order(step, shown) for step in others) else ()
    return (*defaults, *reload, *others, *last_reload)


def _is_out_of_order(step: SetProperties, shown: Mapping[str, Mapping[str, str]]) -> bool:
    """Whether systemd's list of the unit's drop-ins differs after the step from the order of the files on disk."""
    present = [path.rpartition("/")[2] for path in shown.get(step.unit, {}).get("DropInPaths", "").split()]
    names = list(dict.fromkeys((*present, *(f"50-{name}.conf" for name in sorted(step.properties)))))
    return names != sorted(names)


def _missing(wanted: Iterable[tuple[str, str, int]], shown: Mapping[str, Mapping[str, str]]) -> tuple[SetProperties, ...]:
    by_unit: dict[str, dict[str, int]] = {}
    for unit, name, value in wanted:
        by_unit.setdefault(unit, {})[name] = value
    return tuple(
        SetProperties(unit, properties) for unit, properties in by_unit.items() if not are_in_force(properties, shown.get(unit, {}))
    )


def refusal_steps(name: str, what: str, do_next: str, *, again: bool = False, starts: Starts | None = None) -> tuple[Step, ...]:
    """Return the steps of a refused start, for a reason that is not among the decided ones. again: the next attempt may work."""
    log = (_starts_step(name, starts),) if starts else ()
    return (*log, WriteLaunch(Launch(name, what, do_next, again)))


def _starts_step(name: str, starts: Starts) -> Step:
    return WriteFile(paths.starts_file(name), starts.to_json())


def undo_steps(dropins: tuple[Path, ...], earlyoom: EarlyoomFiles) -> tuple[Step, ...]:
    """Return the steps that revert the changes of `apply` that persist after a start."""
    return (*remove_dropins(dropins), *_earlyoom_steps(EarlyoomFiles(), earlyoom))


def _earlyoom_steps(wanted: EarlyoomFiles, there: EarlyoomFiles) -> tuple[Step, ...]:
    """At boot earlyoom has not been started yet: then the reload alone counts."""
    if wanted == there:
        return ()
    steps: list[Step] = []
    if wanted.arguments != there.arguments:
        steps.append(_file_step(paths.EARLYOOM_ENV, wanted.arguments))
    if wanted.dropin != there.dropin:
        steps += (_file_step(paths.EARLYOOM_DROPIN, wanted.dropin), DaemonReload())
    return (*steps, TryRestart(EARLYOOM))


def _file_step(path: Path, text: str | None) -> Step:
    return RemoveFile(path) if text is None else WriteFile(path, text)


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
    """Write the launch file. A refusal is also printed to stderr: a manual `vllm-safe apply NAME` has no unit that reports it."""

    launch: Launch

    def describe(self) -> str:
        """Return the step as one line of text."""
        return self._file().describe() + (f", refusing the start: {self.launch.refusal}" if self.launch.refusal else "")

    def run(self) -> None:
        """Write the file. Raises Failure as WriteFile does."""
        self._file().run()
        if self.launch.refusal:
            lines = [f"vllm-safe: {unit_of(self.launch.name)} cannot start: {self.launch.refusal}", f"  {self.launch.hint}"]
            sys.stderr.write("".join(f"{line}\n" for line in lines if line.strip()))

    def _file(self) -> WriteFile:
        return WriteFile(launch_file(self.launch.name), self.launch.to_json(), mode=0o640, group=paths.USER)
