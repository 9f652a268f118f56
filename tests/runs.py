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


def make_run(  # noqa: PLR0913 - each is another field of a run
    *,
    name: str = "qwen72b",
    run: str = RUN,
    phases: Sequence[str] = PHASES,
    seconds: float = 40.0,
    gpus: int = 0,
    start: dict[str, Any] | None = None,
    last: dict[str, Any] | None = None,
    events: Sequence[Event] = (),
    end: End | dict[str, Any] | None = None,
    log: Sequence[str] = ("INFO 11-23 22:20:50 [__init__.py:241] Automatically detected platform cuda.",),
) -> Run:
    """A run that goes through `phases`, each as long, in `seconds` of one sample each; then `last` replaces fields of the last 5 samples.

    start: fields of Start to replace. events: beside those of the phases. end: the End, or its fields without the time; None: no end.
    """
    count = max(int(seconds), len(phases))
    began = Start(
        name=name,
        run=run,
        time=BEGUN,
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
    samples = [_sample(number, count, phases[number * len(phases) // count], gpus) for number in range(count)]
    samples[-5:] = [sample._replace(**(last or {})) for sample in samples[-5:]]
    told = [Event(BEGUN, "start", "started by a person")]
    told += [
        Event(after.time, "phase", after.phase, {"from": before.phase})
        for before, after in pairwise(samples)
        if before.phase != after.phase
    ]
    ended = End(**{"time": BEGUN + count} | end) if isinstance(end, dict) else end
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


def _sample(number: int, count: int, phase: str, gpus: int) -> Sample:
    """Memory grows to 10 GiB while it loads, what does not fit is swapped out, and the disk is read."""
    share = min(1.0, number / count)
    ready = phase == "ready"
    wave = 0.5 + 0.5 * math.sin(number / 3)
    return Sample(
        time=BEGUN + number,
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
        disk_read=0.0 if ready else 1.2e8,
        disk_write=2.0e7 * wave,
        major_faults=80 * wave,
        cpu=0.2 if ready else 1.5,
        gpus=tuple(Gpu(int(10 * GIB * share), 11 * GIB, 0.9 if ready else 0.0) for _ in range(gpus)),
        read=int(40 * GIB * share),
        tokens=3 * number if ready else None,
        requests=1 if ready else None,
    )
