"""Runs to test with, as the recorder would have written them: for `why`, `report` and `status`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from vllm_safe.contract.recorded_run import End, Event, Gpu, Run, Sample, Start
from vllm_safe.record.run_store import RunStore

GIB = 1 << 30
BEGUN = 1795472448.0  # 2026-11-23 22:20:48 UTC
RUN = "20261123T222048-1a2b3c4d"
BOOT = "6f1c2d7e-0b5a-4c39-9d2e-8a7b6c5d4e3f"
LIMITS = {"memory_max": 12 * GIB, "swap_max": 115 * GIB, "cpu_weight": 10, "io_weight": 1, "tasks_max": 4096}
TIMES = {"start_timeout": 14400.0, "stall_timeout": 900.0, "hang_timeout": 600.0, "stop_grace": 30.0}
HOST = {"memory": 16 * GIB, "swap": 128 * GIB, "cpus": 4, "gpus": 8, "kernel": "6.1.0-28-amd64", "systemd": "252"}
PHASES = ("starting", "importing", "initializing", "loading", "profiling", "compiling", "capturing", "warming-up", "ready")
LOADING = ("starting", "importing", "loading")
EACH = 1.0  # seconds of each phase but the last, of a run that ended
_LOADED = 40.0  # seconds after which all of the model is in memory
_STEADY = 120.0  # seconds from which on a run is sampled each 10 s


def make_run(  # noqa: PLR0913 - each is another field of a run
    *,
    name: str = "qwen72b",
    run: str = RUN,
    phases: Sequence[str] = PHASES,
    seconds: float | None = None,
    each: float | None = None,
    begun: float = BEGUN,
    stuck: float = math.inf,
    gpus: int = 0,
    start: dict[str, Any] | None = None,
    last: dict[str, Any] | None = None,
    events: Sequence[Event] = (),
    end: End | dict[str, Any] | None = None,
    log: Sequence[str] = ("INFO 11-23 22:20:50 [__init__.py:241] Automatically detected platform cuda.",),
) -> Run:
    """Return a run that goes through `phases`; `last` replaces fields of the last 5 samples.

    seconds: how long it is, sampled each second, or each 10 where it is long; unset, it is until the end, else 40. each: of a phase but the
    last; unset, all are as long. begun: Unix time. stuck: seconds after which nothing moves any more. start: fields of Start to replace.
    events: beside those of the phases. end: the End, or its fields, with no time where it is `seconds`; None: no end.
    """
    told_end = end._asdict() if isinstance(end, End) else end
    if seconds is None:
        seconds = told_end["time"] - begun if told_end and "time" in told_end else _LOADED
    every = 1.0 if seconds < _STEADY else 10.0
    count = max(round(seconds / every), len(phases))
    each = each or count * every / len(phases)
    moments = [number * every for number in range(count)]
    began = Start(
        name=name,
        run=run,
        time=begun,
        boot=BOOT,
        health="http://127.0.0.1:8000/health",
        limits=LIMITS,
        host=HOST,
        versions={"vllm-safe": "0.1.0", "engine": "vllm-0.32.0"},
        args={"max-model-len": 8192, "tensor-parallel-size": 8},
        profile="default",
        times=TIMES,
        env={"VLLM_USE_FLASHINFER_SAMPLER": "0"},
    )._replace(**(start or {}))
    whole = min(count * every, _LOADED)
    samples = [
        _sample(at, moved=min(at, stuck), whole=whole, phase=phases[min(int(at / each), len(phases) - 1)], gpus=gpus)._replace(
            time=begun + at
        )
        for at in moments
    ]
    samples[-5:] = [sample._replace(**(last or {})) for sample in samples[-5:]]
    told = [Event(begun, "start", "started by a person")]
    told += [
        Event(after.time, "phase", after.phase, {"from": before.phase})
        for before, after in pairwise(samples)
        if before.phase != after.phase
    ]
    ended = End(**{"time": begun + count * every} | told_end) if told_end is not None else None
    return Run(began, tuple(samples), tuple(sorted([*told, *events], key=lambda event: event.time)), ended, tuple(log))


def write_run(run: Run, folder: Path) -> Path:
    """Write it below `folder` (the place of /var/lib/vllm-safe/runs) with the recorder's own store; where it is."""
    store = RunStore(str(folder), run.start.name, run.start.run)
    store.start(run.start)
    for sample in run.samples:
        store.sample(sample)
    for event in run.events:
        store.event(event)
    store.log(run.log)
    if run.end is not None:
        store.end(run.end)
    if problem := store.close():
        raise OSError(problem)
    return folder / run.start.name / run.start.run


def _sample(at: float, *, moved: float, whole: float, phase: str, gpus: int) -> Sample:
    """Memory grows to 10 GiB while it loads, what does not fit is swapped out, and the disk is read. All of it as `moved` seconds in."""
    share = min(1.0, moved / whole)
    ready = phase == "ready"
    wave = 0.5 + 0.5 * math.sin(at / 3)
    moves = moved == at
    return Sample(
        time=at,
        phase=phase,
        memory=int(11 * GIB * share),
        anon=int(8 * GIB * share),
        shmem=int(2 * GIB * share),
        file=int(1 * GIB * share),
        swap=int(20 * GIB * share),
        memory_pressure=0.05 * wave,
        io_pressure=0.3 * wave,
        os_memory_pressure=0.01 * wave,
        os_io_pressure=0.02 * wave,
        ram_available=int(15 * GIB - 11 * GIB * share),
        swap_free=int(128 * GIB - 20 * GIB * share),
        disk_read=0.0 if ready or not moves else 1.2e8,
        disk_write=2.0e7 * wave if moves else 0.0,
        major_faults=80 * wave if moves else 0.0,
        cpu=0.0 if not moves else 0.2 if ready else 1.5,
        gpus=tuple(
            Gpu(int(10 * GIB * share), 11 * GIB, 0.9 if ready else 0.0, 160.0 if ready else 24.0, 71 if ready else 45, 0.0, 0.0, 0.0, 1, 3)
            for _ in range(gpus)
        ),
        read=int(40 * GIB * share),
        tokens=int(3 * moved) if ready else None,
        requests=1 if ready else None,
    )
