"""A process's walk through the windows: it takes each tensor from the ring, or from its file, in the order of the files.

A tensor is a view of memory that is filled anew once this process has said that it is done with the window. So it says that only when
nobody holds a view of it any more. Who holds one longer than to the next window gets a copy of it under its feet: the pages are touched,
and, the mapping being private, are its own from then on; this process maps the ring anew. Who writes into a view has changed pages of its
own, too: they are given back before the place is used again. Who holds a third of the ring is left to its files: their pages need no room.
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
from .shared_ring import BY_TURNS, IN_FILE, IN_RING, SharedRing

_ENTRY = 8  # bytes of a page in /proc/self/pagemap, whose last byte has these bits
_PRESENT_OR_SWAPPED, _OF_FILE = 0xC0, 0x20


@dataclass(frozen=True)
class _Held:
    """A window that was taken, and what may still be held of it: the views, and where they are in the ring."""

    index: int
    offset: int = 0
    size: int = 0
    views: list[tuple[weakref.ref[memoryview], int, int]] = field(default_factory=list)

    @property
    def alive(self) -> bool:
        """Whether somebody holds one of them."""
        return any(view() is not None for view, _, _ in self.views)


class RingWalk:
    """The walk of one process, whose number among those that share the ring is `rank`."""

    def __init__(self, ring: SharedRing, places: Sequence[RingPlace], rank: int) -> None:
        self._ring, self.places, self._rank = ring, places, rank
        self._memory, self._address = _map(ring)
        self._held: deque[_Held] = deque()
        self._given: list[tuple[weakref.ref[memoryview], int, int]] = []
        self._alone = False
        self._file, self._mapping = "", memoryview(b"")

    def take(self, wanted: Callable[[str], bool]) -> Generator[tuple[int, StoredTensor, memoryview]]:
        """Yield the wanted tensors, each with the index of its window, and a view of its bytes that may be kept and changed."""
        last = len(self.places)
        try:
            for index, place in enumerate(self.places):
                self._let_go(index - 1)
                state = IN_FILE if self._alone else self._ring.wait_for(index)
                held = _Held(index, place.offset or 0, place.size) if state == IN_RING else _Held(index)
                self._held.append(held)
                for tensor in place.window.tensors:
                    if not wanted(tensor.name):
                        continue
                    if state == IN_RING:
                        yield index, tensor, self._view(place, tensor, held)
                    elif state == BY_TURNS:
                        self._ring.wait_passed(index + 1, self._rank)
                        with ReadAhead(place.window.file, *_part(tensor, self._rank, self._ring.shape.ranks)):
                            yield index, tensor, self._view_of_file(place.window.file, tensor)
                    else:
                        yield index, tensor, self._view_of_file(place.window.file, tensor)
                    self._let_go(index, only_free=True)
                self._ring.say_passed(self._rank, index + 1)
            last -= 1  # nothing is read any more: whoever still holds the last tensor needs no copy
        finally:
            self._let_go(last)
            self._ring.end(self._rank)
            self._ring.close()

    def _view(self, place: RingPlace, tensor: StoredTensor, held: _Held) -> memoryview:
        begin = held.offset + tensor.begin - place.begin
        end = begin + tensor.end - tensor.begin
        view = memoryview(self._memory)[begin:end]
        if end > begin:
            held.views.append((weakref.ref(view), begin, end))
        return view

    def _view_of_file(self, file: str, tensor: StoredTensor) -> memoryview:
        """Map the file, privately: it leaves memory with the last who holds a tensor of it."""
        if file != self._file:
            with open(file, "rb", buffering=0) as opened:  # noqa: PTH123 - the names are vLLM's, and strings
                self._mapping = memoryview(mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY))
            self._file = file
        if tensor.end > len(self._mapping):
            raise ValueError(f"{file} has become shorter while it was read")
        return self._mapping[tensor.begin : tensor.end]

    def _let_go(self, last: int, *, only_free: bool = False) -> None:
        """Be done with the windows before `last`, in order. only_free: up to the first of which somebody holds a tensor."""
        while self._held and self._held[0].index < last:
            held = self._held[0]
            if held.alive:
                if only_free:
                    return
                self._give_away()
            elif held.size:
                self._clean(held)
            self._held.popleft()
            self._ring.say_done(self._rank, held.index + 1)

    def _give_away(self) -> None:
        """Leave this mapping to those who hold parts of it, which become copies, and go on with a new one; or without the ring."""
        views = [view for held in self._held for view in held.views if view[0]() is not None]
        for _, begin, end in views:
            for start in range(begin, end, PIECE):
                stop = min(start + PIECE, end)
                self._memory[start:stop] = self._memory[start:stop]
        for held in self._held:
            held.views.clear()
        self._memory, self._address = _map(self._ring)
        self._given = [*(view for view in self._given if view[0]() is not None), *views]
        self._alone |= sum(end - begin for _, begin, end in self._given) > self._ring.shape.capacity // 3
        if self._alone:
            self._ring.end(self._rank)

    def _clean(self, held: _Held) -> None:
        """Give back the pages of a window that are this process's own since it wrote to them."""
        with suppress(OSError), open("/proc/self/pagemap", "rb", buffering=0) as pagemap:  # noqa: PTH123 - a file of the kernel
            offset, size = (number // PAGE * _ENTRY for number in (self._address + held.offset, held.size))
            flags = set(os.pread(pagemap.fileno(), size, offset)[_ENTRY - 1 :: _ENTRY])
            if flags and not any(bits & _PRESENT_OR_SWAPPED and not bits & _OF_FILE for bits in flags):
                return
        self._memory.madvise(mmap.MADV_DONTNEED, held.offset, held.size)


def _map(ring: SharedRing) -> tuple[mmap.mmap, int]:
    """Map the ring, and return where."""
    memory = ring.map_private()
    return memory, ctypes.addressof(ctypes.c_char.from_buffer(memory))


def _part(tensor: StoredTensor, rank: int, ranks: int) -> tuple[int, int]:
    """Return where the part of a process is in the file, of a tensor that is split by its rows."""
    size = tensor.end - tensor.begin
    return tensor.begin + size * rank // ranks, tensor.begin + size * (rank + 1) // ranks
