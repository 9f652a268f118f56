"""The process that reads: windows in the order of the files, in large requests past the page cache, into the ring.

Several threads have a request each, so that the disk always knows the next ones; the interpreter is free while they wait. Where a file
system cannot read past the cache, it is read through the cache, and leaves it. What is in the cache already is left to those who take it.
What is too large for the ring is read into the cache, if that has room; otherwise processes read it by turns, each its own part.
"""

from __future__ import annotations

import errno
import mmap
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice

from .large_pages import join_pages
from .ring_layout import PAGE, RingPlace
from .shared_ring import BY_TURNS, IN_FILE, IN_RING, SharedRing

PIECE = 4 << 20  # bytes of one request, which the kernel hands to the disk as one or several
_AHEAD = 2  # requests at once: with more, a disk gets many small ones at a time, out of order
_PROBE = 256 << 10  # bytes between two pages that are looked for in the cache
_BY_TURNS = 2  # dimensions of tensors whose parts, by process, lie one after the other


class _Source:
    """An open file. `cold`: something of it was not in the cache. `refuses`: its file system does not read past the cache."""

    def __init__(self, file: str) -> None:
        self.cached = self.direct = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        self.cold = self.refuses = False
        try:
            os.posix_fadvise(self.cached, 0, 0, os.POSIX_FADV_RANDOM)  # who asks for a page gets one
            self.direct = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
        except OSError:
            self.refuses = True

    def close(self) -> None:
        for descriptor in {self.cached, self.direct}:
            os.close(descriptor)


@dataclass
class _Window:
    """A window that is being read."""

    index: int
    source: _Source
    left: int  # pieces
    state: int  # where it is then
    failed: bool = False


@dataclass(frozen=True)
class _Piece:
    window: _Window
    begin: int  # in the file
    needed: int  # bytes of it; beyond them is only the rest of a page
    target: memoryview | None  # in the ring; None: the page cache


class RingReader:
    """Fills the ring from the places of the windows, with threads of its own, until all are read or nobody takes them any more.

    cache: bytes of the page cache that a window may have which is too large for the ring.
    """

    def __init__(self, ring: SharedRing, places: Sequence[RingPlace], cache: int = 0) -> None:
        self._ring, self._cache = ring, cache
        self._places = places
        self._memory = ring.map_shared()
        self._descriptor = os.dup(ring.descriptor)  # the walk of this process closes its own
        self._sources: dict[str, _Source] = {}
        self._next, self._count = threading.Lock(), threading.Lock()
        self._begin = 0  # the first window that may have to be read
        self._pieces = self._split()
        self._threads = [threading.Thread(target=self._read_pieces, name="vllm-safe-read", daemon=True) for _ in range(_AHEAD)]
        self._running = _AHEAD

    def start(self) -> None:
        """Read in the background. A thread outlives neither the last window nor the process."""
        self._begin = self._skip_cached()
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        """Wait until all is read, nobody takes from the ring any more, and its memory is given back."""
        for thread in self._threads:
            thread.join()

    def _read_pieces(self) -> None:
        try:
            while piece := self._take_piece():
                self._note(piece.window, whole=_read(piece))
        finally:
            with self._count:
                self._running -= 1
            if not self._running:
                self._finish()

    def _take_piece(self) -> _Piece | None:
        with self._next:
            return next(self._pieces, None)

    def _note(self, window: _Window, *, whole: bool) -> None:
        with self._count:
            window.failed |= not whole
            window.left -= 1
            if not window.left:  # where it failed, whoever takes it maps the file, and meets the error
                self._ring.publish(window.index, IN_FILE if window.failed else window.state)

    def _finish(self) -> None:
        """Give the memory back once nobody takes from it: a mapping that somebody keeps must not keep all of it."""
        self._ring.publish_rest(IN_FILE)
        os.close(self._descriptor)
        for source in self._sources.values():
            source.close()
        self._ring.wait_ended()
        last = self._places[-1] if self._places else None  # its tensors may be held, and go with their mappings
        begin, end = (last.offset, last.offset + last.size) if last and last.offset is not None else (0, 0)
        with suppress(OSError):
            for start, stop in ((0, begin), (end, self._ring.shape.capacity)):
                if start < stop:
                    self._memory.madvise(mmap.MADV_REMOVE, start, stop - start)

    def _skip_cached(self) -> int:
        """Publish the first windows that need no reading. Return their number.

        The thread that takes tensors does this before it begins: it would keep the interpreter from the threads that read.
        """
        for index, place in enumerate(self._places):
            if self._find_source(place) is not None:
                return index
            self._ring.publish(index, IN_FILE)
        return len(self._places)

    def _find_source(self, place: RingPlace) -> _Source | None:
        """Return the file from which the window is read; None if it is in the cache, or if the file cannot be opened."""
        with suppress(OSError):
            source = self._open(place.window.file)
            return source if place.window.size and not _is_cached(source, place) else None
        return None

    def _split(self) -> Iterator[_Piece]:
        """Yield the pieces of all windows, each once there is a place for it."""
        cached, large = 0, False  # windows up to the last that is read into the cache; whether the ring has large pages
        for index, place in islice(enumerate(self._places), self._begin, None):
            if not (source := self._find_source(place)):
                self._ring.publish(index, IN_FILE)  # however far the others are
            elif not self._ring.wait_done(place.after + 1):
                return
            elif place.offset is not None:
                if not large:  # not before it is needed: all of it is there then
                    large = True
                    join_pages(self._descriptor, self._ring.shape.header, self._ring.shape.capacity)
                yield from self._pieces_of(_Window(index, source, _pieces(place.size), IN_RING), place)
            elif place.window.size <= self._cache:
                self._ring.wait_passed(cached, self._ring.shape.ranks)  # one at a time
                cached = index + 1
                yield from self._pieces_of(_Window(index, source, _pieces(place.size), IN_FILE), place)
            else:
                by_turns = len(place.window.tensors[0].shape) <= _BY_TURNS
                self._ring.publish(index, BY_TURNS if by_turns else IN_FILE)
                self._ring.wait_passed(index + 1, self._ring.shape.ranks)  # the disk is theirs

    def _pieces_of(self, window: _Window, place: RingPlace) -> Iterator[_Piece]:
        """Yield the pieces of a window, none of which is small."""
        size = -(-place.size // window.left // PAGE) * PAGE
        window.left = -(-place.size // size)
        for start in range(0, place.size, size):
            stop = min(start + size, place.size)
            target = None if place.offset is None else memoryview(self._memory)[place.offset + start : place.offset + stop]
            yield _Piece(window, place.begin + start, min(stop, place.window.end - place.begin) - start, target)

    def _open(self, file: str) -> _Source:
        if file not in self._sources:
            self._sources[file] = _Source(file)
        return self._sources[file]


def _pieces(size: int) -> int:
    return -(-size // PIECE)


def _is_cached(source: _Source, place: RingPlace) -> bool:
    """Return whether all of it seems to be in the page cache. The kernel begins to read a page that is not: no file is asked again then."""
    page = [bytearray(PAGE)]
    if source.cold:
        return False
    with suppress(OSError):
        source.cold = not all(os.preadv(source.cached, page, at, os.RWF_NOWAIT) for at in range(place.begin, place.window.end, _PROBE))
        return not source.cold
    source.cold = True
    return False


def _read(piece: _Piece) -> bool:
    """Read a piece; return whether all that is needed of it is there."""
    source, target = piece.window.source, piece.target
    if target is None:
        return _read_cached(source.cached, piece, memoryview(bytearray(piece.needed)))
    if not source.refuses:
        try:
            return os.preadv(source.direct, [target], piece.begin) >= piece.needed
        except OSError as error:
            if error.errno != errno.EINVAL:
                return False
            source.refuses = True
    whole = _read_cached(source.cached, piece, target)
    with suppress(OSError):  # a file system that knows no advice
        os.posix_fadvise(source.cached, piece.begin, piece.needed, os.POSIX_FADV_DONTNEED)
    return whole


def _read_cached(descriptor: int, piece: _Piece, target: memoryview) -> bool:
    got, needed = 0, piece.needed
    try:
        with suppress(OSError):
            os.posix_fadvise(descriptor, piece.begin, needed, os.POSIX_FADV_WILLNEED)
        while got < needed:
            if not (more := os.preadv(descriptor, [target[got:needed]], piece.begin + got)):
                return False
            got += more
    except OSError:
        return False
    return True


class ReadAhead:
    """Reads a range of a file into the page cache, in order, while somebody takes it from a mapping; until it is told to stop."""

    def __init__(self, file: str, begin: int, end: int) -> None:
        self._file, self._begin, self._end = file, begin, end
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="vllm-safe-ahead", daemon=True)

    def __enter__(self) -> None:
        """Begin to read."""
        self._thread.start()

    def __exit__(self, *_error: object) -> None:
        """Stop it."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        buffer = mmap.mmap(-1, PIECE)
        with suppress(OSError), open(self._file, "rb", buffering=0) as opened:  # noqa: PTH123 - the names are vLLM's, and strings
            starts = range(self._begin, self._end, PIECE)
            for index, start in enumerate(starts):
                for ahead in starts[index + (_AHEAD - 1 if index else 0) : index + _AHEAD]:
                    os.posix_fadvise(opened.fileno(), ahead, min(PIECE, self._end - ahead), os.POSIX_FADV_WILLNEED)
                if self._stop.is_set():
                    return
                os.preadv(opened.fileno(), [memoryview(buffer)[: self._end - start]], start)
