"""One process's walk through the windows. It takes each tensor from the ring, or from its file, in the order of the files.

A tensor is a view of the ring's memory. The reader fills that memory anew once every process has reported that it is done with the window.
So a process reports this only when none of its code holds a view of the window any more.

A view may still be held after the next window has been taken. Then the process writes to the pages of the view: since its mapping of the
ring is private, the kernel copies them, and the view keeps its content. The process maps the ring anew to go on.

If code writes into a view, the pages that it changed are private copies, too. The process discards them before their place is used again.

If the copies together exceed a third of the ring, the process leaves the ring and maps the files. The kernel can reclaim pages of files.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import weakref
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from .ring_layout import PAGE, RingPlace
from .ring_reader import PIECE, ReadAhead
from .shard_layout import StoredTensor
from .shared_ring import IN_FILE, IN_RING, IN_TURN, SharedRing

_ENTRY = 8  # bytes of the entry of a page in /proc/self/pagemap; its last byte has these flags
_PRESENT_OR_SWAPPED, _FILE_OR_SHARED = 0xC0, 0x20


@dataclass(frozen=True)
class _TakenWindow:
    """A window that this process has taken, and its views that may still be held, with their begin and end in the ring."""

    index: int
    offset: int = 0
    size: int = 0
    views: list[tuple[weakref.ref[memoryview], int, int]] = field(default_factory=list)

    @property
    def is_held(self) -> bool:
        """Whether anything still holds one of the views."""
        return any(view() is not None for view, _, _ in self.views)


class RingWalk:
    """The walk of one process. `rank` is its number among the processes that share the ring."""

    def __init__(self, ring: SharedRing, places: Sequence[RingPlace], rank: int) -> None:
        self._ring, self.places, self._rank = ring, places, rank
        self._memory, self._address = _map(ring)
        self._taken: deque[_TakenWindow] = deque()
        self._copies: list[tuple[weakref.ref[memoryview], int, int]] = []
        self._has_left = False
        self._file, self._mapping = "", memoryview(b"")

    def take(self, wanted: Callable[[str], bool]) -> Generator[tuple[int, StoredTensor, memoryview]]:
        """Yield the wanted tensors, each with the index of its window and a view of its bytes. The caller may keep and change the view."""
        last = len(self.places)
        try:
            for index, place in enumerate(self.places):
                self._report_done(index - 1)
                state = IN_FILE if self._has_left else self._ring.wait_for(index)
                taken = _TakenWindow(index, place.offset or 0, place.size) if state == IN_RING else _TakenWindow(index)
                self._taken.append(taken)
                for tensor in place.window.tensors:
                    if not wanted(tensor.name):
                        continue
                    if state == IN_RING:
                        yield index, tensor, self._view(place, tensor, taken)
                    elif state == IN_TURN:
                        self._ring.wait_passed(index + 1, self._rank)
                        with ReadAhead(place.window.file, *_part(tensor, self._rank, self._ring.shape.ranks)):
                            yield index, tensor, self._view_of_file(place.window.file, tensor)
                    else:
                        yield index, tensor, self._view_of_file(place.window.file, tensor)
                    self._report_done(index, only_free=True)
                self._ring.report_passed(self._rank, index + 1)
            last -= 1  # nothing is read into the ring any more: the last tensor needs no copy, even if it is held
        finally:
            self._report_done(last)
            self._ring.end(self._rank)
            self._ring.close()

    def _view(self, place: RingPlace, tensor: StoredTensor, taken: _TakenWindow) -> memoryview:
        begin = taken.offset + tensor.begin - place.begin
        end = begin + tensor.end - tensor.begin
        view = memoryview(self._memory)[begin:end]
        if end > begin:
            taken.views.append((weakref.ref(view), begin, end))
        return view

    def _view_of_file(self, file: str, tensor: StoredTensor) -> memoryview:
        """Return a view of a private mapping of the file. The mapping goes with the last tensor of it that is held."""
        if file != self._file:
            with open(file, "rb", buffering=0) as opened:  # noqa: PTH123 - the names are vLLM's, and strings
                self._mapping = memoryview(mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY))
            self._file = file
        if tensor.end > len(self._mapping):
            raise ValueError(f"{file} was truncated while it was being read")
        return self._mapping[tensor.begin : tensor.end]

    def _report_done(self, last: int, *, only_free: bool = False) -> None:
        """Report the windows before `last` as done, in order. only_free: stop at the first one of which a tensor is held."""
        while self._taken and self._taken[0].index < last:
            taken = self._taken[0]
            if taken.is_held:
                if only_free:
                    return
                self._copy_held_views()
            elif taken.size:
                self._discard_copies(taken)
            self._taken.popleft()
            self._ring.report_done(self._rank, taken.index + 1)

    def _copy_held_views(self) -> None:
        """Make private copies of all views that are held, and map the ring anew. Leave the ring if the copies have become too many."""
        views = [view for taken in self._taken for view in taken.views if view[0]() is not None]
        for _, begin, end in views:
            for start in range(begin, end, PIECE):
                stop = min(start + PIECE, end)
                self._memory[start:stop] = self._memory[start:stop]  # the kernel copies pages that are written to
        for taken in self._taken:
            taken.views.clear()
        self._memory, self._address = _map(self._ring)
        self._copies = [*(view for view in self._copies if view[0]() is not None), *views]
        self._has_left |= sum(end - begin for _, begin, end in self._copies) > self._ring.shape.capacity // 3
        if self._has_left:
            self._ring.end(self._rank)

    def _discard_copies(self, taken: _TakenWindow) -> None:
        """Discard the pages of a window that this process has private copies of, because it wrote to them."""
        with suppress(OSError), open("/proc/self/pagemap", "rb", buffering=0) as pagemap:  # noqa: PTH123 - a file in /proc
            offset, size = (number // PAGE * _ENTRY for number in (self._address + taken.offset, taken.size))
            flags = set(os.pread(pagemap.fileno(), size, offset)[_ENTRY - 1 :: _ENTRY])
            if flags and not any(bits & _PRESENT_OR_SWAPPED and not bits & _FILE_OR_SHARED for bits in flags):
                return
        self._memory.madvise(mmap.MADV_DONTNEED, taken.offset, taken.size)


def _map(ring: SharedRing) -> tuple[mmap.mmap, int]:
    """Map the ring; return the mapping and its address."""
    memory = ring.map_private()
    return memory, ctypes.addressof(ctypes.c_char.from_buffer(memory))


def _part(tensor: StoredTensor, rank: int, ranks: int) -> tuple[int, int]:
    """Return where a process's part of a tensor begins and ends in the file, if the tensor is split by rows."""
    size = tensor.end - tensor.begin
    return tensor.begin + size * rank // ranks, tensor.begin + size * (rank + 1) // ranks
