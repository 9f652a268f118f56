"""Measure how fast a disk reads in sequence: a few seconds of an existing file, past the page cache. Nothing is written."""

from __future__ import annotations

import mmap
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count

from vllm_safe.common.sizes import MIB

# As vllm-safe's loader reads (ring_reader.py): with two reads at once, the disk knows the next one when it has finished the first.
_CHUNK, _AT_ONCE = 4 * MIB, 2  # the buffer of mmap is aligned as O_DIRECT wants it
_PATIENCE = 4.0  # seconds


@dataclass(frozen=True)
class DiskPace:
    """What was read, and how long that took."""

    size: int  # bytes
    seconds: float

    @property
    def rate(self) -> float:
        """Bytes a second."""
        return self.size / self.seconds if self.seconds > 0 else 0.0


def measure_pace(descriptor: int, seconds: float = _PATIENCE) -> DiskPace:
    """Read a file from its start, until its end or the end of the time. It must be open with O_DIRECT, else RAM is measured."""
    began, starts = time.monotonic(), count(0, _CHUNK)

    def read() -> int:
        size = 0
        with mmap.mmap(-1, _CHUNK) as buffer:
            while time.monotonic() - began < seconds:
                got = os.preadv(descriptor, [buffer], next(starts))
                size += got
                if got < _CHUNK:
                    break
        return size

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        sizes = [done.result() for done in [pool.submit(read) for _ in range(_AT_ONCE)]]
    return DiskPace(sum(sizes), time.monotonic() - began)
