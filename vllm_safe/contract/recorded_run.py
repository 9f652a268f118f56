"""One recorded run: immutable values, as `vllm-safe why`, `report` and `status` see them. Sizes are bytes, times Unix seconds.

Named tuples, not dataclasses: the recorder is resident while a model is, and dataclasses alone cost 2 MB.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Gpu(NamedTuple):
    """One card as NVML shows it."""

    used: int
    total: int
    busy: float  # share of the interval, 0..1


class Sample(NamedTuple):
    """The figures of one moment. Rates and shares are over the time since the sample before. None: unknown."""

    time: float
    phase: str  # as in contract/state_file.py
    memory: int | None = None  # memory.current of the unit's cgroup
    anon: int | None = None
    shmem: int | None = None
    file: int | None = None  # page cache without shmem
    swap: int | None = None
    memory_pressure: float | None = None  # `full` of the unit, share of the interval 0..1
    io_pressure: float | None = None
    os_memory_pressure: float | None = None  # the worst of system.slice, user.slice and init.scope, `full`
    os_io_pressure: float | None = None
    ram_available: int | None = None  # MemAvailable
    swap_free: int | None = None
    disk_read: float | None = None  # bytes/s of all disks
    disk_write: float | None = None
    major_faults: float | None = None  # per second, of the unit
    cpu: float | None = None  # cores that the unit uses
    gpus: tuple[Gpu, ...] = ()
    read: int | None = None  # of the checkpoint's files so far
    tokens: int | None = None  # generated since the start
    requests: int | None = None  # running


class Event(NamedTuple):
    """Something that happened. kind: start, phase, guard, kernel-oom, earlyoom, nvidia, unread (the journal), stall, hang, stopping."""

    time: float
    kind: str
    text: str  # one line for a person
    data: Mapping[str, Any] = {}


class Start(NamedTuple):
    """What a run began with."""

    name: str
    run: str  # its id: 20261123T221048-1a2b3c4d, sorts by time
    time: float
    boot: str  # /proc/sys/kernel/random/boot_id
    command: bool = False  # a `command:` server, not vLLM
    restart: int = 0  # which automatic restart this is, of those that count, 0: started by a person
    health: str = ""
    limits: Mapping[str, int] = {}  # memory_max, swap_max, cpu_weight, ... by the setting's name
    host: Mapping[str, Any] = {}  # memory, swap, cpus, gpus (how many), cards (each), kernel, systemd
    versions: Mapping[str, str] = {}  # vllm-safe, engine
    args: Mapping[str, Any] = {}  # the options of `vllm serve`, secrets left out
    profile: str = ""
    times: Mapping[str, float] = {}  # seconds: start_timeout, stall_timeout, hang_timeout, stop_grace
    env: Mapping[str, str] = {}  # of the server: what `why` may suggest to change, by name


class End(NamedTuple):
    """What a run ended with: from the main process (cause, reason), and from systemd and the kernel (the rest) when all was over."""

    time: float
    cause: str = ""  # as in contract/state_file.py; "" when the main process could not say
    reason: str = ""  # its one line
    result: str = ""  # $SERVICE_RESULT: success, exit-code, signal, oom-kill, watchdog, timeout ...
    exit_code: str = ""  # $EXIT_CODE: exited, killed, dumped
    exit_status: str = ""  # $EXIT_STATUS: a number, or a signal's name
    memory_events: Mapping[str, int] = {}  # memory.events of the unit's cgroup, oom_kill and the like
    swap_events: Mapping[str, int] = {}  # memory.swap.events
    error: str = ""  # what the server ended of, in its own words, whole
    served: bool = False  # whether it was ever ready


class Run(NamedTuple):
    """All of it. end is None while it runs, and for ever if the machine went down under it."""

    start: Start
    samples: tuple[Sample, ...] = ()
    events: tuple[Event, ...] = ()
    end: End | None = None
    log: tuple[str, ...] = ()  # the last 200 lines that the server printed
