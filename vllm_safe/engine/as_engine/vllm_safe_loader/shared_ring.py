"""A ring buffer in memory that the processes of one machine share, with the progress of each. It needs no barrier between them.

It is a memfd that consists of a header and the ring. In the header, the reader publishes the state of each window, and each process reports
how many windows it is done with. Each word has a single writer. A process that waits for a word polls it.
"""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from .large_pages import LARGE_PAGE

# The states of a window: not read yet; in the ring; to be mapped from its file, by all processes at once or in turn.
UNREAD, IN_RING, IN_FILE, IN_TURN = range(4)
_ENDED = 1 << 62  # instead of a number of windows: the process takes no more
_WORD = 8
_PAUSES = 0.0005, 0.005  # seconds between two polls: at first, and at most


@dataclass(frozen=True)
class RingShape:
    """The number of processes that share a ring, the number of windows, and the size of the ring in bytes."""

    ranks: int
    windows: int
    capacity: int

    @property
    def header(self) -> int:
        """The size in bytes of the header, which ends at a large page. Few of its pages are ever touched."""
        return -(-(2 * _WORD * self.ranks + self.windows) // LARGE_PAGE) * LARGE_PAGE


class SharedRing:
    """The ring, as one process has it open."""

    def __init__(self, descriptor: int, shape: RingShape) -> None:
        """Take ownership of the descriptor of the memfd."""
        self.shape = shape
        self.descriptor = descriptor
        self._header = memoryview(mmap.mmap(descriptor, shape.header))
        words = _WORD * shape.ranks
        self._done = self._header[:words].cast("Q")
        self._passed = self._header[words : 2 * words].cast("Q")
        self._states = self._header[2 * words :]

    @classmethod
    def create(cls, shape: RingShape) -> Self:
        """Create a ring."""
        descriptor = os.memfd_create("vllm-safe-ring", os.MFD_CLOEXEC)
        os.ftruncate(descriptor, shape.header + shape.capacity)
        return cls(descriptor, shape)

    @classmethod
    def open(cls, pid: int, descriptor: int, shape: RingShape) -> Self:
        """Open the ring of another process. Raises OSError if that is not allowed, and ValueError if it does not have that shape."""
        return cls(os.open(f"/proc/{pid}/fd/{descriptor}", os.O_RDWR | os.O_CLOEXEC), shape)

    def close(self) -> None:
        """Close the descriptor. Mappings stay until their last holder is gone."""
        os.close(self.descriptor)

    def map_shared(self) -> mmap.mmap:
        """Map the ring for the reader, which fills it."""
        return mmap.mmap(self.descriptor, self.shape.capacity, offset=self.shape.header)

    def map_private(self) -> mmap.mmap:
        """Map the ring for a process that takes from it. No other process sees its changes."""
        flags, protection = mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE
        return mmap.mmap(self.descriptor, self.shape.capacity, flags=flags, prot=protection, offset=self.shape.header)

    def publish(self, window: int, state: int) -> None:
        """Publish the state of a window: where it is."""
        self._states[window] = state

    def publish_rest(self, state: int) -> None:
        """Publish the same state for all windows that have none yet."""
        for window in range(self.shape.windows):
            if self._states[window] == UNREAD:
                self._states[window] = state

    def wait_for(self, window: int) -> int:
        """Wait until a window is available; return its state."""
        wait_until(lambda: self._states[window] != UNREAD)
        return self._states[window]

    def report_done(self, rank: int, windows: int) -> None:
        """Report that a process needs nothing of its first `windows` windows any more."""
        self._done[rank] = max(self._done[rank], windows)

    def report_passed(self, rank: int, windows: int) -> None:
        """Report that a process has taken its tensors from its first `windows` windows. It may still hold some of them."""
        self._passed[rank] = max(self._passed[rank], windows)

    def end(self, rank: int) -> None:
        """Report that a process takes nothing more from the ring."""
        self._passed[rank] = self._done[rank] = _ENDED

    def wait_done(self, windows: int) -> bool:
        """Wait until all processes are done with the first `windows` windows; return whether any of them takes more."""
        wait_until(lambda: min(self._done) >= windows)
        return min(self._done) < _ENDED

    def wait_ended(self) -> None:
        """Wait until no process takes anything more."""
        wait_until(lambda: min(self._done) == _ENDED)

    def wait_passed(self, windows: int, ranks: int) -> None:
        """Wait until the first `ranks` processes have passed the first `windows` windows."""
        wait_until(lambda: min(self._passed[:ranks], default=_ENDED) >= windows)


def wait_until(condition: Callable[[], bool]) -> None:
    """Return once the condition holds."""
    pause, longest = _PAUSES
    while not condition():
        time.sleep(pause)
        pause = min(pause * 2, longest)
