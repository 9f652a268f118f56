"""The decision from figures whether a loading server makes progress. Pure: the figures and the time are parameters.

Any figure that moves is progress: bytes read, memory mapped or allocated on the machine or its GPUs, CPU time used, lines printed that were
not printed before. The activity of a dead but polling server is not progress: see STEPS. Neither is the CPU time of processes that wait for
each other: see CommunicationWait. Time in which this process did not run (the guard's freeze, a suspended machine) is not counted.
"""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from vllm_safe.common.sizes import MIB, format_size
from vllm_safe.contract.state_file import LoadProgress
from vllm_safe.launch.processes import Process
from vllm_safe.launch.timers import TimeOfDay

LONGEST_TICK = 5.0  # seconds of one tick that count; a longer tick is a freeze, or a machine too busy to judge by
RATE_OVER = 60.0  # seconds over which a rate is computed: a disk that stalls for some seconds changes the time left by little
RATE_AFTER = 5.0  # seconds before a rate is reported


class ProcessReadings(NamedTuple):
    """Totals over the server's processes since they began, including processes that have ended; sizes are the present ones."""

    read: int = 0  # bytes from disks
    mapped: int = 0  # bytes of files in memory
    resident: int = 0  # bytes of resident memory
    gpu: int = 0  # bytes in use on all GPUs, by any program; 0 without GPUs
    cpu: float = 0.0  # seconds of CPU time
    faults: int = 0  # page faults
    news: int = 0  # lines that had not been printed before
    processes: int = 0  # processes alive now


# A figure moves when it has grown by more than a step, plus a rate for each second of stillness (for CPU time and faults: and for each
# process). The activity of a dead but polling server then stays below the threshold for ever, however its polls are spread. Measured on
# vLLM 0.32 with two workers, idle for two minutes: 1.0 % of a core for each worker, 0.2 % for the API server, no byte read, no memory
# allocated, no line. A disk of 64 KiB/s would need two weeks for 77 GB. Page faults: a process that waits for a kernel on an H200 takes
# none in nine seconds (it uses one core, and the GPU is 100 % busy), and vLLM's loop of sched_yield takes one in a minute; torch.compile
# takes 5,000 to 60,000 a second with a few seconds of none, and the GPU is at 0 % except when it tries a kernel.
STEPS = ProcessReadings(read=MIB, mapped=4 * MIB, resident=4 * MIB, gpu=16 * MIB, cpu=0.5, faults=2000)
RATES = ProcessReadings(read=64 << 10, mapped=64 << 10, resident=64 << 10, gpu=64 << 10, cpu=0.03, faults=5)
_EACH = frozenset({"cpu", "faults"})  # figures whose rate applies to each process

# vllm/distributed/device_communicators/shm_broadcast.py:108, printed each VLLM_RINGBUFFER_WARNING_INTERVAL while a worker does not answer;
# vLLM before 0.11 printed the shorter form.
WAITS = re.compile(r"No available (?:shared memory broadcast )?block found in (?P<seconds>\d+) second")
_WAITS_TORN = 100  # bytes: more than WAITS can match
_BUSY = 0.95  # threshold for the busy share of a GPU that waits in a kernel for another GPU: the driver reports 1.0


class ProcessTotals:
    """Totals over processes, of which some end and others begin."""

    def __init__(self) -> None:
        self._last: dict[tuple[int, int], Process] = {}
        self._read, self._cpu, self._faults = 0, 0.0, 0

    def add(self, processes: Sequence[Process], news: int, gpu: int = 0) -> ProcessReadings:
        """Add a reading of the processes that are alive; return the totals."""
        for process in processes:
            before = self._last.get((process.pid, process.started))
            self._read += process.read - (before.read if before else 0)
            self._cpu += process.cpu - (before.cpu if before else 0.0)
            self._faults += process.faults - (before.faults if before else 0)
        self._last = {(process.pid, process.started): process for process in processes}
        mapped, resident = sum(process.mapped for process in processes), sum(process.resident for process in processes)
        return ProcessReadings(self._read, mapped, resident, gpu, self._cpu, self._faults, news, len(processes))


class CommunicationWait:
    """A detector for processes that wait for each other, as in NCCL or a custom all-reduce: they spin, and use a CPU core and a GPU each.

    Their CPU time is then no progress, but page faults are: a process that compiles, loads or computes touches memory that is new to it.
    """

    def __init__(self) -> None:
        self._torn = b""
        self._until = -math.inf  # the time until which the last printed line is valid

    def read_output(self, chunk: bytes, now: float) -> None:
        """Take a chunk of the output, which may be cut anywhere. A line that is not repeated soon becomes invalid."""
        data = self._torn + chunk
        if b"block found in" in data:  # otherwise the data need not be decoded
            text = data.decode(errors="replace")
            for match in WAITS.finditer(text):
                self._until = now + 2 * int(match["seconds"]) + LONGEST_TICK
                data = text[match.end() :].encode()
        self._torn = data[-_WAITS_TORN:]

    def signs(self, now: float, busy: float | None) -> tuple[str, ...]:
        """Return the signs of such a wait, () if there are none. busy: the lowest busy share of all GPUs in use, None if unknown."""
        printed = ("vLLM repeatedly reports that a worker does not answer (no shared memory broadcast block)",) if now < self._until else ()
        seen = (f"every GPU in use is {busy:.0%} busy",) if busy is not None and busy >= _BUSY else ()
        return printed + seen


class Stillness:
    """The time for which no figure has moved, as far as it counts. now: seconds of a monotonic clock. wall: Unix time."""

    def __init__(self, now: float, wall: float) -> None:
        self.still = 0.0  # seconds
        self.since = wall  # the time of the last movement
        self._now = now
        self._from: ProcessReadings | None = None  # the readings at that time
        self._last = ProcessReadings()

    def look(self, now: float, wall: float, readings: ProcessReadings, *, waits: bool = False) -> bool:
        """Take readings and return whether anything has moved. waits: CPU time is not movement, see CommunicationWait."""
        self.still += min(max(now - self._now, 0.0), LONGEST_TICK)
        self._now, self._last = now, readings
        if self._from is None or self._moved(readings, "cpu" if waits else "faults"):
            self.still, self.since, self._from = 0.0, wall, readings
            return True
        # A figure that shrank may grow again: that is progress from its present value.
        shrunk = {name: min(getattr(self._from, name), getattr(readings, name)) for name in ("mapped", "resident", "gpu")}
        self._from = self._from._replace(**shrunk)
        return False

    def describe(self, time_of_day: TimeOfDay) -> str:
        """Describe the movements since the last progress: "12.0 KiB read, ..., 0.1 s of CPU time, no new output since 12:04:31"."""
        before, after = self._from or self._last, self._last
        kinds = {"read": "read", "mapped": "mapped", "resident": "of memory allocated"}
        kinds |= {"gpu": "of GPU memory allocated"} if after.gpu else {}
        sizes = [f"{format_size(max(0, getattr(after, name) - getattr(before, name)))} {what}" for name, what in kinds.items()]
        return f"{', '.join(sizes)}, {after.cpu - before.cpu:.1f} s of CPU time, no new output since {time_of_day(self.since)}"

    def _moved(self, readings: ProcessReadings, but: str) -> bool:
        before = self._from or readings
        for name in STEPS._fields[:-1]:
            if name == but:
                continue
            factor = readings.processes if name in _EACH else 1
            allowed = getattr(STEPS, name) + getattr(RATES, name) * factor * self.still
            if getattr(readings, name) - getattr(before, name) > allowed:
                return True
        return False


class Checkpoint:
    """The share of the checkpoint that has been read. sizes: bytes of its files, in the order of reading.

    Each worker reads the whole checkpoint, through mappings of one file after another, from the disk or from the page cache. In each case
    its mapped memory grows (or, where a loader calls read(2), the bytes that it called for). The mean of the workers is used, and
    "shard 3 of 4" in the log corrects it: workers of a tensor-parallel model skip some pages, and under pressure touch some twice. The
    loader of this package counts its bytes itself: see count().
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        self.total = sum(sizes)
        self._sizes = tuple(sizes)
        self._got: dict[tuple[int, int], int] = {}  # bytes read, by process
        self._last: dict[tuple[int, int], Process] = {}
        self._most = 0
        self._past: deque[tuple[float, int]] = deque()
        self._counted = False

    def look(self, now: float, processes: Sequence[Process], *, loading: bool, done: int = 0, of: int = 0) -> LoadProgress | None:
        """Take a reading of the processes; return the progress, or None while the server is not loading.

        done, of: the shards that the log counts. It must be called from the start of the server on, so that the mappings of Python and its
        libraries are not mistaken for the model.
        """
        for process in processes:
            key = process.pid, process.started
            if loading and (before := self._last.get(key)):
                grown = max(process.mapped - before.mapped, 0) + max(process.called - before.called, 0)
                self._got[key] = self._got.get(key, 0) + grown
        self._last = {(process.pid, process.started): process for process in processes}
        if not loading or not self.total:
            return None
        self._most = max(self._most, self._within(self._mean(), done, of))
        return self._progress(now)

    def count(self, now: float, read: int, stored: int) -> LoadProgress:
        """Return the progress from the loader's own count. read: bytes that it has read. stored: bytes of the checkpoint."""
        if not self._counted:  # drop the estimates from before the first count
            self._past.clear()
        self._counted = True
        self.total, self._most = stored, read
        return self._progress(now)

    def _mean(self) -> int:
        got = [self._got.get(key, 0) for key in self._last]
        readers = [bytes_ for bytes_ in got if bytes_ * 10 > max(got)]  # other processes (the API server) do not read the checkpoint
        return sum(readers) // len(readers) if readers else 0

    def _within(self, got: int, done: int, of: int) -> int:
        if not 0 < of == len(self._sizes):
            return min(got, self.total)
        return min(max(got, sum(self._sizes[:done])), sum(self._sizes[: done + 1]))

    def _progress(self, now: float) -> LoadProgress:
        self._past.append((now, self._most))
        while len(self._past) > 2 and self._past[1][0] <= now - RATE_OVER:
            self._past.popleft()
        (then, before) = self._past[0]
        if now - then < RATE_AFTER:
            return LoadProgress(self._most, self.total, counted=self._counted)
        rate = (self._most - before) / (now - then)
        left = (self.total - self._most) / rate if rate > 0 else None
        return LoadProgress(self._most, self.total, rate, left, self._counted)
