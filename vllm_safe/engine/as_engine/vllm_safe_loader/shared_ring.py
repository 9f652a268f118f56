"""A ring of memory that the processes of a machine share, with what each of them says of itself: nobody waits for all to meet.

It is a memfd: a header, and the ring. The process that reads says of each window where it is; all say how many windows they are done with.
Each of these words is written by one process, and whoever waits for one looks again after a pause.
"""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from .large_pages import LARGE_PAGE

UNREAD, IN_RING, IN_FILE, BY_TURNS = range(4)  # of a window: not yet there; in the ring; to be mapped from its file, at once or by turns
_ENDED = 1 << 62  # windows that a process is done with when it takes no more
_WORD = 8
_PAUSES = 0.0005, 0.005  # seconds: the first, and the longest


@dataclass(frozen=True)
class RingShape:
    """How many processes share a ring, of how many bytes, for how many windows."""

    ranks: int
    windows: int
    capacity: int

    @property
    def header(self) -> int:
        """The bytes before the ring, of which few are touched."""
        return -(-(2 * _WORD * self.ranks + self.windows) // LARGE_PAGE) * LARGE_PAGE


class SharedRing:
    """The ring, as one of the processes sees it."""

    def __init__(self, descriptor: int, shape: RingShape) -> None:
        """Take over the descriptor of the memory."""
        self.shape = shape
        self.descriptor = descriptor
        self._header = memoryview(mmap.mmap(descriptor, shape.header))
        words = _WORD * shape.ranks
        self._done = self._header[:words].cast("Q")
        self._passed = self._header[words : 2 * words].cast("Q")
        self._states = self._header[2 * words :]

    @classmethod
    def create(cls, shape: RingShape) -> Self:
        """Make a ring."""
        descriptor = os.memfd_create("vllm-safe-ring", os.MFD_CLOEXEC)
        os.ftruncate(descriptor, shape.header + shape.capacity)
        return cls(descriptor, shape)

    @classmethod
    def open(cls, pid: int, descriptor: int, shape: RingShape) -> Self:
        """Open the ring of another process. Raises OSError where that is not allowed, and ValueError where it is not of that shape."""
        return cls(os.open(f"/proc/{pid}/fd/{descriptor}", os.O_RDWR | os.O_CLOEXEC), shape)

    def close(self) -> None:
        """Let go of the descriptor. What has been mapped stays until its last holder is gone."""
        os.close(self.descriptor)

    def map_shared(self) -> mmap.mmap:
        """Map the ring for the process that fills it."""
        return mmap.mmap(self.descriptor, self.shape.capacity, offset=self.shape.header)

    def map_private(self) -> mmap.mmap:
        """Map the ring for a process that takes from it: what it changes there, nobody else sees."""
        flags, protection = mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE
        return mmap.mmap(self.descriptor, self.shape.capacity, flags=flags, prot=protection, offset=self.shape.header)

    def publish(self, window: int, state: int) -> None:
        """Say where a window is."""
        self._states[window] = state

    def publish_rest(self, state: int) -> None:
        """Say the same of all windows of which nothing has been said."""
        for window in range(self.shape.windows):
            if self._states[window] == UNREAD:
                self._states[window] = state

    def wait_for(self, window: int) -> int:
        """Wait until the window is there; return where it is."""
        wait_until(lambda: self._states[window] != UNREAD)
        return self._states[window]

    def say_done(self, rank: int, windows: int) -> None:
        """Say that a process needs nothing any more of so many windows."""
        self._done[rank] = max(self._done[rank], windows)

    def say_passed(self, rank: int, windows: int) -> None:
        """Say that a process has taken what it wants of so many windows, and may hold some of it."""
        self._passed[rank] = max(self._passed[rank], windows)

    def end(self, rank: int) -> None:
        """Say that a process takes nothing more from the ring."""
        self._passed[rank] = self._done[rank] = _ENDED

    def wait_done(self, windows: int) -> bool:
        """Wait until all are done with so many windows; return whether any of them goes on."""
        wait_until(lambda: min(self._done) >= windows)
        return min(self._done) < _ENDED

    def wait_ended(self) -> None:
        """Wait until nobody takes anything more."""
        wait_until(lambda: min(self._done) == _ENDED)

    def wait_passed(self, windows: int, ranks: int) -> None:
        """Wait until so many of the processes, from the first, have passed so many windows."""
        wait_until(lambda: min(self._passed[:ranks], default=_ENDED) >= windows)


def wait_until(holds: Callable[[], bool]) -> None:
    """Return once it holds."""
    pause, longest = _PAUSES
    while not holds():
        time.sleep(pause)
        pause = min(pause * 2, longest)
