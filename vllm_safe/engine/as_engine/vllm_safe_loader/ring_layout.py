"""The places of read windows in a ring buffer. They are decided once, before anything is read. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .shard_layout import ReadWindow, StoredTensor

PAGE = 4096  # bytes: direct I/O (O_DIRECT) begins and ends at a multiple of this, in the file and in memory
_LARGEST_RING = 768 << 20  # bytes
_USUAL_RING = 64 << 20  # bytes, unless a tensor needs more: enough for the disk to go on reading while the workers are busy
_SMALLEST_RING = 3 << 20  # bytes: a smaller ring is not worth it
_LARGEST_WINDOW = 16 << 20  # bytes: a process can take nothing of a window before all of it has been read


@dataclass(frozen=True)
class RingPlace:
    """The place of a window in the ring.

    offset: where the window begins in the ring; None for a window that is empty or too large, which is not read into the ring.
    after: the index of an earlier window. Once all processes are done with that window and those before it, this one may be read. -1 means
    that it need not wait.
    """

    window: ReadWindow
    offset: int | None
    after: int

    @property
    def begin(self) -> int:
        """The offset in the file at which the read begins."""
        return self.window.begin - self.window.begin % PAGE

    @property
    def size(self) -> int:
        """The number of bytes that are read, which is also the space that they take in the ring."""
        return spanned(self.window.begin, self.window.end)


def spanned(begin: int, end: int) -> int:
    """Return the size in bytes of all pages of a file that overlap a range."""
    return -(-end // PAGE) * PAGE - begin // PAGE * PAGE if begin < end else 0


def decide_capacity(room: int, tensors: Iterable[StoredTensor]) -> int:
    """Return the size in bytes of a ring for these tensors, or 0 if there is too little memory. room: available bytes of memory."""
    most = min(room * 3 // 4, _LARGEST_RING) // PAGE * PAGE
    spans = [spanned(tensor.begin, tensor.end) for tensor in tensors]
    needed = max([_USUAL_RING, *(3 * span for span in spans if 3 * span <= most)])
    return min(most, needed, sum(spans)) if most >= min(_SMALLEST_RING, sum(spans)) else 0


def decide_cache(room: int, capacity: int) -> int:
    """Return the size in bytes up to which a window that is too large for the ring is read into the page cache."""
    return max(room - capacity, 0) // 2


def decide_window(capacity: int) -> int:
    """Return the size in bytes up to which neighbouring tensors are read together."""
    return min(capacity // 4, _LARGEST_WINDOW)


def place_windows(windows: Sequence[ReadWindow], capacity: int) -> list[RingPlace]:
    """Return the place of each window.

    No window waits for the one directly before it, because a process that waits for the next tensor still holds the last one that it took.
    So a window takes at most a third of the ring, unless all windows fit at once. A third of the ring is then left before or behind the
    window that is still held.
    """
    sizes = [spanned(window.begin, window.end) for window in windows]
    most = capacity if sum(sizes) <= capacity else capacity // 3
    places: list[RingPlace] = []
    occupied: list[tuple[int, int, int]] = []  # windows in the ring: index, begin and end
    next_offset, reused = 0, -1  # the offset behind the last window, and the last window whose place has been reused
    for index, (window, size) in enumerate(zip(windows, sizes, strict=True)):
        if not 0 < size <= most:
            places.append(RingPlace(window, None, -1))
            continue
        begin = next_offset if next_offset + size <= capacity else 0
        next_offset = begin + size
        reused = max((other for other, start, stop in occupied if start < next_offset and begin < stop), default=reused)
        places.append(RingPlace(window, begin, reused))
        occupied = [*((other, start, stop) for other, start, stop in occupied if other > reused), (index, begin, next_offset)]
    return places
