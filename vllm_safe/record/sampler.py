"""A sample of a model and its machine, read from /proc and /sys/fs/cgroup: some twenty small files, a millisecond in all."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

from vllm_safe.common.kernfs import (
    CGROUPS,
    MEMORY_PRESSURE,
    MODELS_SLICE,
    SYSTEM_SLICES,
    parse_flat_keyed,
    parse_meminfo,
    parse_number,
    parse_stall,
    read_kernel_file,
)
from vllm_safe.contract.recorded_run import Gpu, Sample
from vllm_safe.contract.state_file import State

_SECTOR = 512  # bytes of a sector in /proc/diskstats, whatever the sector size of the disk


class Counters(NamedTuple):
    """Counters that only grow. Rates are computed from two readings of them. None: unknown."""

    at: float  # seconds of the monotonic clock
    memory_stall: int | None  # microseconds, `full`, of the unit
    io_stall: int | None
    os_memory_stalls: tuple[int | None, ...]  # one for each of SYSTEM_SLICES
    os_io_stalls: tuple[int | None, ...]
    read: int | None  # bytes of all disks
    written: int | None
    major_faults: int | None
    cpu: int | None  # microseconds


class QuickSample(NamedTuple):
    """The least data that shows whether any figure moves: four files."""

    memory: int | None
    swap: int | None
    stalled: int  # microseconds of the unit and of the machine, both of memory


class Sampler:
    """The source of samples of one model. root: "" for this machine."""

    def __init__(self, name: str, root: str = "") -> None:
        self._root = root
        self._cgroups = f"{root}{CGROUPS}"
        self.cgroup = f"{self._cgroups}/{MODELS_SLICE}/vllm@{name}.service"
        self._before: Counters | None = None
        self._disks: dict[str, bool] = {}  # name -> whether it is a physical disk, not a partition or an array

    def glance(self) -> QuickSample:
        """Take a quick sample."""
        stalls = (parse_stall(read_kernel_file(path)) for path in (f"{self.cgroup}/memory.pressure", f"{self._root}{MEMORY_PRESSURE}"))
        memory, swap = (parse_number(read_kernel_file(f"{self.cgroup}/{name}")) for name in ("memory.current", "memory.swap.current"))
        return QuickSample(memory, swap, sum(stall or 0 for stall in stalls))

    def read(self, now: float, wall: float, state: State | None, gpus: tuple[Gpu, ...] = ()) -> Sample:
        """Take a sample, with rates since the previous one.

        now: seconds of the monotonic clock, so that setting the system clock changes no rate. wall: Unix time.
        """
        stat = parse_flat_keyed(read_kernel_file(f"{self.cgroup}/memory.stat"))
        machine = parse_meminfo(read_kernel_file(f"{self._root}/proc/meminfo"))
        before, after = self._before, self._count(now, stat)
        self._before = after
        file, shmem = stat.get("file"), stat.get("shmem")
        return Sample(
            time=wall,
            phase=state.phase if state else "waiting",
            memory=parse_number(read_kernel_file(f"{self.cgroup}/memory.current")),
            anon=stat.get("anon"),
            shmem=shmem,
            file=None if file is None else max(0, file - (shmem or 0)),
            swap=parse_number(read_kernel_file(f"{self.cgroup}/memory.swap.current")),
            ram_available=machine.get("MemAvailable"),
            swap_free=machine.get("SwapFree"),
            gpus=gpus,
            read=state.progress.read if state and state.progress else None,
            tokens=state.tokens if state else None,
            requests=state.running if state else None,
            **(_rates(before, after) if before else {}),
        )

    def events(self, name: str) -> dict[str, int]:
        """Read memory.events or memory.swap.events of the unit; {} if its cgroup no longer exists."""
        return parse_flat_keyed(read_kernel_file(f"{self.cgroup}/{name}"))

    def processes(self) -> list[int]:
        """Return the process ids of the unit."""
        return [int(pid) for pid in read_kernel_file(f"{self.cgroup}/cgroup.procs").split() if pid.isdecimal()]

    def _count(self, now: float, stat: Mapping[str, int]) -> Counters:
        read, written = self._disk_bytes()
        return Counters(
            at=now,
            memory_stall=parse_stall(read_kernel_file(f"{self.cgroup}/memory.pressure")),
            io_stall=parse_stall(read_kernel_file(f"{self.cgroup}/io.pressure")),
            os_memory_stalls=tuple(parse_stall(read_kernel_file(f"{self._cgroups}/{other}/memory.pressure")) for other in SYSTEM_SLICES),
            os_io_stalls=tuple(parse_stall(read_kernel_file(f"{self._cgroups}/{other}/io.pressure")) for other in SYSTEM_SLICES),
            read=read,
            written=written,
            major_faults=stat.get("pgmajfault"),
            cpu=parse_flat_keyed(read_kernel_file(f"{self.cgroup}/cpu.stat")).get("usage_usec"),
        )

    def _disk_bytes(self) -> tuple[int | None, int | None]:
        """Return the bytes that all disks have read and written since boot. Partitions, LVM and RAID count the same bytes again."""
        read = written = 0
        found = False
        for line in read_kernel_file(f"{self._root}/proc/diskstats").splitlines():
            row = line.split()
            if len(row) > 9 and self._is_disk(row[2]):
                read, written, found = read + int(row[5]), written + int(row[9]), True
        return (read * _SECTOR, written * _SECTOR) if found else (None, None)

    def _is_disk(self, name: str) -> bool:
        if name not in self._disks:
            self._disks[name] = os.path.exists(f"{self._root}/sys/block/{name}/device")
        return self._disks[name]


def _rates(before: Counters, after: Counters) -> dict[str, float | None]:
    seconds = max(after.at - before.at, 1e-3)

    def rate(old: int | None, new: int | None, unit: float = 1.0) -> float | None:
        return None if old is None or new is None else max(0.0, new - old) / unit / seconds

    def worst(olds: tuple[int | None, ...], news: tuple[int | None, ...]) -> float | None:
        shares = [share for old, new in zip(olds, news, strict=True) if (share := rate(old, new, 1e6)) is not None]
        return min(1.0, max(shares)) if shares else None

    return {
        "memory_pressure": worst((before.memory_stall,), (after.memory_stall,)),
        "io_pressure": worst((before.io_stall,), (after.io_stall,)),
        "os_memory_pressure": worst(before.os_memory_stalls, after.os_memory_stalls),
        "os_io_pressure": worst(before.os_io_stalls, after.os_io_stalls),
        "disk_read": rate(before.read, after.read),
        "disk_write": rate(before.written, after.written),
        "major_faults": rate(before.major_faults, after.major_faults),
        "cpu": rate(before.cpu, after.cpu, 1e6),
    }
