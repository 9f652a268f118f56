"""The places of windows in a ring of memory: decided once, before anything is read. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .shard_layout import ReadWindow, StoredTensor

PAGE = 4096  # bytes: what is read past the cache begins and ends at a multiple of it, in the file and in memory
_MOST = 768 << 20  # bytes of a ring
_PLENTY = 64 << 20  # bytes of a ring, where no tensor needs more: what a disk reads while the workers are elsewhere
_LEAST = 3 << 20  # bytes of a ring that is worth it
_WINDOW = 16 << 20  # bytes of a window: processes wait for a whole one


@dataclass(frozen=True)
class RingPlace:
    """Where a window is in the ring. `offset` is None where it is not read into the ring: it is too large.

    after: the window may be read once all are done with this one, and all before it; -1 where it need not wait.
    """

    window: ReadWindow
    offset: int | None
    after: int

    @property
    def begin(self) -> int:
        """The first byte of the file that is read."""
        return self.window.begin - self.window.begin % PAGE

    @property
    def size(self) -> int:
        """The bytes that are read, and the place that they take."""
        return spanned(self.window.begin, self.window.end)


def spanned(begin: int, end: int) -> int:
    """Return the bytes of all pages of a file that have a byte of this range."""
    return -(-end // PAGE) * PAGE - begin // PAGE * PAGE if begin < end else 0


def decide_capacity(room: int, tensors: Iterable[StoredTensor]) -> int:
    """Return the bytes of a ring for these tensors where memory has `room`; 0 where that is too little."""
    most = min(room * 3 // 4, _MOST) // PAGE * PAGE
    spans = [spanned(tensor.begin, tensor.end) for tensor in tensors]
    needed = max([_PLENTY, *(3 * span for span in spans if 3 * span <= most)])
    return min(most, needed, sum(spans)) if most >= min(_LEAST, sum(spans)) else 0


def decide_cache(room: int, capacity: int) -> int:
    """Return the bytes of page cache beside the ring that one window may have which is too large for that."""
    return max(room - capacity, 0) // 2


def decide_window(capacity: int) -> int:
    """Return the bytes up to which tensors are read together."""
    return min(capacity // 4, _WINDOW)


def place_windows(windows: Sequence[ReadWindow], capacity: int) -> list[RingPlace]:
    """Give each window its place. None waits for the one directly before it: whoever takes tensors still holds the last one of that.

    So a window has at most a third of the ring, unless all fit at once: beside a third, there is a third before it or behind it.
    """
    sizes = [spanned(window.begin, window.end) for window in windows]
    most = capacity if sum(sizes) <= capacity else capacity // 3
    places: list[RingPlace] = []
    held: list[tuple[int, int, int]] = []  # windows in the ring: index, where they begin and end
    free, gone = 0, -1  # the place of the next, and the last window that gave its place to another
    for index, (window, size) in enumerate(zip(windows, sizes, strict=True)):
        if not 0 < size <= most:
            places.append(RingPlace(window, None, -1))
            continue
        begin = free if free + size <= capacity else 0
        free = begin + size
        gone = max((other for other, start, stop in held if start < free and begin < stop), default=gone)
        places.append(RingPlace(window, begin, gone))
        held = [*((other, start, stop) for other, start, stop in held if other > gone), (index, begin, free)]
    return places
