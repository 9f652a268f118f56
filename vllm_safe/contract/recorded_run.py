"""One recorded run, as immutable values: the input of `vllm-safe why`, `report` and `status`. Sizes are in bytes, times in Unix seconds.

Named tuples, not dataclasses: the recorder is resident while a model runs, and the module dataclasses alone costs 2 MB.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

_SILENT = 120.0  # seconds without a line of the recorder, which writes one every ten seconds, after which it counts as gone


class Gpu(NamedTuple):
    """One GPU, as NVML reports it. Shares are of the interval, 0..1. None: unknown."""

    used: int
    total: int  # 0: it does not answer
    busy: float  # share
    power: float | None = None  # watts that it draws
    temperature: int | None = None  # degrees Celsius
    heat: float | None = None  # share in which its clocks were lowered because it was too hot ...
    capped: float | None = None  # ... because it drew what its power limit allows ...
    braked: float | None = None  # ... because the power supply or its own protection demanded it
    lanes: int | None = None  # of its PCIe link
    generation: int | None = None  # of its PCIe link, which is lower while the GPU is idle


class Sample(NamedTuple):
    """The figures at one moment. Rates and shares are of the time since the previous sample. None: unknown."""

    time: float
    phase: str  # as in contract/state_file.py
    memory: int | None = None  # memory.current of the unit's cgroup
    anon: int | None = None
    shmem: int | None = None
    file: int | None = None  # page cache without shmem
    swap: int | None = None
    memory_pressure: float | None = None  # `full` of the unit, share of the interval 0..1
    io_pressure: float | None = None
    os_memory_pressure: float | None = None  # `full`, the highest of system.slice, user.slice and init.scope
    os_io_pressure: float | None = None
    ram_available: int | None = None  # MemAvailable
    swap_free: int | None = None
    disk_read: float | None = None  # bytes/s, of all disks
    disk_write: float | None = None
    major_faults: float | None = None  # per second, of the unit
    cpu: float | None = None  # CPU cores that the unit uses
    gpus: tuple[Gpu, ...] = ()
    read: int | None = None  # bytes of the checkpoint that have been read so far
    tokens: int | None = None  # tokens generated since the start
    requests: int | None = None  # running requests


class Event(NamedTuple):
    """An event. kind: start, phase, memory (data: ReportedMemory), guard, kernel-oom, earlyoom, nvidia, stall, hang, stopping.

    Other kinds: load, the weights have been loaded (data: bytes, seconds, and whether the loader of this package counted the bytes);
    unread, the journal could not be read.
    """

    time: float
    kind: str
    text: str  # one line for a person
    data: Mapping[str, Any] = {}


class Start(NamedTuple):
    """The facts at the beginning of a run."""

    name: str
    run: str  # the id of the run: 20261123T221048-1a2b3c4d, sorts by time
    time: float
    boot: str  # /proc/sys/kernel/random/boot_id
    command: bool = False  # a `command:` server, not vLLM
    restart: int = 0  # the number of this automatic restart, of those that count; 0: started by a person
    health: str = ""
    limits: Mapping[str, int] = {}  # by the name of the setting: memory_max, swap_max, cpu_weight, ...
    host: Mapping[str, Any] = {}  # memory, swap, cpus, gpus (their number), cards (one for each GPU), power_limit, kernel, systemd
    versions: Mapping[str, str] = {}  # vllm-safe, engine
    args: Mapping[str, Any] = {}  # the options of `vllm serve`, without secrets
    profile: str = ""
    times: Mapping[str, float] = {}  # seconds: start_timeout, stall_timeout, hang_timeout, stop_grace
    env: Mapping[str, str] = {}  # the variables of the server's environment that `why` may suggest to change


class End(NamedTuple):
    """The facts at the end of a run: cause and reason from the main process, the rest from systemd and the kernel after the end."""

    time: float
    cause: str = ""  # as in contract/state_file.py; "" if the main process could not report one
    reason: str = ""  # one line, from the main process
    result: str = ""  # $SERVICE_RESULT: success, exit-code, signal, oom-kill, watchdog, timeout ...
    exit_code: str = ""  # $EXIT_CODE: exited, killed, dumped
    exit_status: str = ""  # $EXIT_STATUS: a number, or the name of a signal
    memory_events: Mapping[str, int] = {}  # memory.events of the unit's cgroup: oom_kill and others
    swap_events: Mapping[str, int] = {}  # memory.swap.events
    error: str = ""  # the error that ended the server, whole, as the server printed it
    served: bool = False  # whether the server was ever ready


class Run(NamedTuple):
    """A whole run. end: None while it goes on, and for ever if the machine went down during the run."""

    start: Start
    samples: tuple[Sample, ...] = ()
    events: tuple[Event, ...] = ()
    end: End | None = None
    log: tuple[str, ...] = ()  # the last 200 lines that the server printed

    @property
    def last_record(self) -> float:
        """Time of the last record, in Unix seconds."""
        last = [part[-1].time for part in (self.samples, self.events) if part]
        return max(self.start.time, self.end.time if self.end else 0.0, *last)

    def is_silent(self, now: float) -> bool:
        """Whether at the Unix time `now` the recorder has written nothing for so long that it must have gone."""
        return now - self.last_record >= _SILENT
