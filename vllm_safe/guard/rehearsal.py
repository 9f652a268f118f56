"""A rehearsal of all actions before the guard's memory is locked, so that an emergency needs nothing from a disk.

Decisions are made from invented readings, and carried out on a directory that stands in for the cgroups. It is in the unit's own
RuntimeDirectory=, in RAM.
"""

from __future__ import annotations

import os
from contextlib import suppress

from vllm_safe.common.kernfs import MODELS_SLICE
from vllm_safe.contract.guard_file import EVENTS_FOLDER, GuardPlan
from vllm_safe.guard.guard_actions import CgroupControl
from vllm_safe.guard.guard_decision import CALM, TICK, GuardState
from vllm_safe.guard.guard_journal import MOST_LINES, Journal, model_name
from vllm_safe.guard.readings import Reading, Usage

_UNIT = "rehearsal.service"
_FILES = {
    "cpu.weight": "100\n",
    "io.weight": "default 100\n",
    "cgroup.threads": f"{os.getpid()}\n",
    "cgroup.freeze": "0\n",
    "cgroup.kill": "",
}
_STALL = 2 * GuardPlan().kill.after  # seconds; a model that is frozen again and again is killed somewhat later than after kill.after


def rehearse(folder: str = EVENTS_FOLDER) -> set[str]:
    """Rehearse, and return the kinds of actions that occurred, which are all kinds.

    Its files are removed. If it cannot write, it only makes decisions.
    """
    stage = f"{folder}/.rehearsal"
    _remove(stage)  # left by a guard that was killed during its rehearsal
    try:
        with suppress(OSError):
            _build(stage)
        return _play(CgroupControl(stage), Journal(stage, f"{stage}/journal"))
    finally:
        _remove(stage)


def _play(control: CgroupControl, journal: Journal) -> set[str]:
    guard, done = GuardState(GuardPlan()), set[str]()
    for step in range(int((_STALL + 2 * CALM) / TICK)):
        now = step * TICK
        usage = Usage(step * 1000, 1 << 30)
        reading = Reading(now, {"system.slice memory full": min(now, _STALL)}, {_UNIT: usage}, step, 1 << 30, 1 << 20, 0)
        for act in guard.tick(reading):
            control.do(act)
            journal.record(act)
            done.add(act.kind)
            control.hold()
    guard.release()
    control.recover()
    return done


def _build(stage: str) -> None:
    group = f"{stage}/{MODELS_SLICE}/{_UNIT}"
    os.makedirs(group)  # noqa: PTH103 - pathlib is 2 MB
    for name, text in _FILES.items():
        _write(f"{group}/{name}", text)
        _write(f"{stage}/{MODELS_SLICE}/{name}", text)
    _write(f"{stage}/{model_name(_UNIT)}.jsonl", "\n" * MOST_LINES)  # long enough that the journal shortens it, too


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="ascii") as file:  # noqa: PTH123
        file.write(text)


def _remove(path: str) -> None:
    with suppress(OSError):
        with os.scandir(path) as entries:
            found = list(entries)
        for entry in found:
            if entry.is_dir(follow_symlinks=False):
                _remove(entry.path)
            else:
                os.unlink(entry.path)  # noqa: PTH108
        os.rmdir(path)  # noqa: PTH106
