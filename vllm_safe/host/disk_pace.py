"""Measure how fast a disk reads in sequence: a few seconds of an existing file, past the page cache. Nothing is written."""

from __future__ import annotations

import mmap
import os
import time
from dataclasses import dataclass

from vllm_safe.common.sizes import MIB

_CHUNK = 8 * MIB  # as large as what loaders read at once; the buffer of mmap is aligned as O_DIRECT wants it
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
    size, began = 0, time.monotonic()
    with mmap.mmap(-1, _CHUNK) as buffer:
        while (now := time.monotonic()) - began < seconds:
            got = os.preadv(descriptor, [buffer], size)
            size += got
            if got < _CHUNK:
                now = time.monotonic()
                break
        else:
            now = time.monotonic()
    return DiskPace(size, now - began)
