"""The recorder's notes of kills for lack of memory: real lines of the kernel and earlyoom through its reader, and the guard's own."""

from __future__ import annotations

import json

from vllm_safe.contract.guard_file import GuardPlan
from vllm_safe.contract.recorded_run import Event
from vllm_safe.guard.guard_decision import TICK, GuardAction, GuardState
from vllm_safe.guard.guard_journal import event_line
from vllm_safe.guard.readings import Reading, Usage
from vllm_safe.record.kill_evidence import JournalLine, find_deaths

UNIT = "vllm@qwen72b.service"
SLICE = "/vllm.slice"
_GIB = 1 << 30
_PID = 71


def kernel(at: float, *, limit: bool, memcg: str = f"{SLICE}/{UNIT}") -> Event:
    """Have the kernel kill a worker, at the limit of `memcg` or for the whole machine (mm/oom_kill.c of Linux 6.1)."""
    whose = f"CONSTRAINT_MEMCG,nodemask=(null),cpuset=/,mems_allowed=0,oom_memcg={memcg}" if limit else "CONSTRAINT_NONE,nodemask=(null)"
    everywhere = "" if limit else ",cpuset=/,mems_allowed=0,global_oom"
    sizes = "total-vm:20971520kB, anon-rss:8388608kB, file-rss:1024kB, shmem-rss:0kB, UID:998 pgtables:1500kB oom_score_adj:1000"
    lines = (
        f"oom-kill:constraint={whose}{everywhere},task_memcg={SLICE}/{UNIT},task=VLLM::Worker_TP,pid={_PID},uid=998",
        f"{'Memory cgroup out' if limit else 'Out'} of memory: Killed process {_PID} (VLLM::Worker_TP) {sizes}",
    )
    return _death(at, *lines, is_kernel=True)


def earlyoom(at: float) -> Event:
    """Have earlyoom 1.7 end a worker."""
    lines = (
        "low memory! at or below SIGTERM limits: mem  5.00%, swap  5.00%",
        f'sending SIGTERM to process {_PID} uid 998 "VLLM::Worker_TP": badness 1300, VmRSS 8192 MiB',
    )
    return _death(at, *lines, is_kernel=False)


def _death(at: float, *lines: str, is_kernel: bool) -> Event:
    (event,) = find_deaths([JournalLine(at, 100.0, is_kernel, line) for line in lines], 0.0, UNIT, {_PID})
    return event


def guard(since: float) -> list[Event]:
    """All that the guard does, on its default settings, to a model that keeps the OS from its memory from then on: the last is the kill."""
    warden, stalled, moved, acts = GuardState(GuardPlan()), 0.0, 0, list[tuple[float, GuardAction]]()
    for tick in range(1, 4000):
        if warden.held_back.get(UNIT) != "frozen":
            moved += 2000
        stalled += 0.95 * TICK
        # Half a GiB of 16 is available, and the swap is nearly used up.
        models = {UNIT: Usage(moved, 12 * _GIB)}
        reading = Reading(tick * TICK, {"system.slice memory full": stalled}, models, 0, 16 * _GIB, _GIB // 2, _GIB // 4)
        acts += ((since + tick * TICK, act) for act in warden.tick(reading))
        if any(act.kind == "kill" for _, act in acts):
            return [_noted(at, act) for at, act in acts]
    raise AssertionError("it was never killed")


def _noted(at: float, act: GuardAction) -> Event:
    """Return the line that the guard writes, as the recorder notes it."""
    line = json.loads(event_line(act, at))
    return Event(line["time"], "guard", line["text"], {"act": line["act"], "readings": line["readings"]})
