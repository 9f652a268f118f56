"""The readings of the guard: the kernel's pressure files, which also wake it up (PSI triggers), and the counters of the cgroups."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Mapping

from vllm_safe.common.kernfs import (
    CGROUPS,
    MODELS_SLICE,
    SYSTEM_SLICES,
    parse_flat_keyed,
    parse_meminfo,
    parse_number,
    parse_stall,
    read_kernel_file,
)
from vllm_safe.guard.readings import Reading, Usage

RESOURCES = ("memory", "io")
DOWNLOADS = ("vllm-safe-fetch", "vllm-safe-install")  # units in the slice that are no models: no model is blamed for their page movement
TRIGGER_WINDOW = 1_000_000  # microseconds
LOW = 0.05  # share of RAM and of swap below which readings are frequent, whatever PSI shows
FAULT = 0.01  # seconds to read one page from a hard disk: without PSI, a stall is estimated from major faults
_PAGE = 4096


def list_units(root: str = CGROUPS) -> tuple[list[str], list[str]]:
    """Return the units in the models' slice: models (and units that stand in for one), which are watched, and downloads."""
    try:
        with os.scandir(f"{root}/{MODELS_SLICE}") as entries:
            names = sorted(entry.name for entry in entries if entry.name.endswith((".service", ".scope")))
    except OSError:
        names = []
    return [name for name in names if not name.startswith(DOWNLOADS)], [name for name in names if name.startswith(DOWNLOADS)]


def has_pressure(root: str = CGROUPS) -> bool:
    """Return whether pressure stall information (PSI) is available."""
    return any(read_kernel_file(f"{root}/{group}/memory.pressure") for group in SYSTEM_SLICES)


class Triggers:
    """PSI triggers, one descriptor for each pressure file: poll(2) returns POLLPRI when the operating system has been stalled enough."""

    def __init__(self, root: str = CGROUPS) -> None:
        self._root = root
        self._files: dict[str, int] = {}
        self._stall = 0

    def set(self, pressure: float, poll: select.poll) -> None:
        """Set a trigger at this share of a second in each existing pressure file; triggers with the same share stay as they are."""
        stall = int(pressure * TRIGGER_WINDOW)
        if stall != self._stall:
            self.clear(poll)
            self._stall = stall
        for path in (f"{self._root}/{group}/{resource}.pressure" for group in SYSTEM_SLICES for resource in RESOURCES):
            if path in self._files:
                continue
            try:
                file = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            except OSError:  # user.slice is created at the first login
                continue
            try:
                os.write(file, b"full %d %d\0" % (stall, TRIGGER_WINDOW))
            except OSError:
                os.close(file)
                continue
            poll.register(file, select.POLLPRI)
            self._files[path] = file

    def drop(self, file: int, poll: select.poll) -> None:
        """Close the trigger of a cgroup that has been removed."""
        for path in [path for path, other in self._files.items() if other == file]:
            poll.unregister(file)
            os.close(file)
            del self._files[path]

    def clear(self, poll: select.poll) -> None:
        """Close all triggers."""
        for file in list(self._files.values()):
            self.drop(file, poll)

    def __len__(self) -> int:
        return len(self._files)


class PressureWatch:
    """The source of readings. Without PSI (`pressure` is false), stalls are estimated from major faults while RAM is scarce."""

    def __init__(self, root: str = CGROUPS, meminfo: str = "/proc/meminfo") -> None:
        self._root, self._meminfo = root, meminfo
        self.pressure = has_pressure(root)
        self._gained: dict[str, tuple[int, int]] = {}  # by unit: its pages at the last reading, and the pages that it has gained in total
        self._faults: dict[str, int] = {}
        self._estimated: dict[str, float] = {}

    def read(self) -> Reading:
        """Take a reading."""
        memory = self.memory()
        models, downloads = list_units(self._root)
        others = (*SYSTEM_SLICES, *(f"{MODELS_SLICE}/{unit}" for unit in downloads))
        reading = Reading(
            now=time.monotonic(),
            stalls=self._stalls() if self.pressure else {},
            models={unit: self._usage(f"{MODELS_SLICE}/{unit}") for unit in models},
            others=sum(self._usage(group).moved for group in others),
            ram=memory.get("MemTotal", 0),
            available=memory.get("MemAvailable", 0),
            swap_free=memory.get("SwapFree", 0),
            certain=self.pressure or _short(memory),
        )
        there = {*others, *(f"{MODELS_SLICE}/{unit}" for unit in models)}
        self._gained = {group: value for group, value in self._gained.items() if group in there}
        return reading if self.pressure else reading._replace(stalls=self._estimate(scarce=reading.scarce))

    def memory(self) -> dict[str, int]:
        """Return /proc/meminfo in bytes, by its names."""
        return parse_meminfo(read_kernel_file(self._meminfo))

    def short(self) -> bool:
        """Return whether RAM and swap are both nearly used up."""
        return _short(self.memory())

    def _stalls(self) -> dict[str, float]:
        stalls = {}
        for group in SYSTEM_SLICES:
            for resource in RESOURCES:
                stall = parse_stall(read_kernel_file(f"{self._root}/{group}/{resource}.pressure"))
                if stall is not None:
                    stalls[f"{group} {resource} full"] = stall / 1e6
        return stalls

    def _estimate(self, *, scarce: bool) -> dict[str, float]:
        for group in SYSTEM_SLICES:
            faults = self._stat(group).get("pgmajfault", 0)
            new = faults - self._faults.get(group, faults)
            self._faults[group] = faults
            key = f"{group} memory faults"
            self._estimated[key] = self._estimated.get(key, 0.0) + (FAULT * max(0, new) if scarce else 0.0)
        return dict(self._estimated)

    def _stat(self, group: str) -> dict[str, int]:
        return parse_flat_keyed(read_kernel_file(f"{self._root}/{group}/memory.stat"))

    def _number(self, group: str, name: str) -> int:
        return parse_number(read_kernel_file(f"{self._root}/{group}/{name}")) or 0

    def _usage(self, group: str) -> Usage:
        """Count the pages that a cgroup refaulted, read, wrote or gained: these push out the pages of others."""
        stat = self._stat(group)
        held = self._number(group, "memory.current")
        pages = (held + self._number(group, "memory.swap.current")) // _PAGE
        before, gained = self._gained.get(group, (pages, 0))
        gained += max(0, pages - before)
        self._gained[group] = (pages, gained)
        through = _through_disks(read_kernel_file(f"{self._root}/{group}/io.stat"))
        refaults = stat.get("workingset_refault_anon", 0) + stat.get("workingset_refault_file", 0)
        return Usage(refaults + gained + through // _PAGE, held)


def _short(memory: Mapping[str, int]) -> bool:
    ram, swap = memory.get("MemTotal", 0), memory.get("SwapTotal", 0)
    return memory.get("MemAvailable", ram) < LOW * ram and memory.get("SwapFree", 0) <= LOW * swap


def _through_disks(text: str) -> int:
    """Return all bytes read and written, from io.stat. Some kernels begin a line with the names of idle disks."""
    through = 0
    for line in text.splitlines():
        counts = {key: int(value) for key, _, value in (word.partition("=") for word in line.split()) if value.isdecimal()}
        through += counts.get("rbytes", 0) + counts.get("wbytes", 0)
    return through
