"""The reader that fills the ring. It reads the windows in the order of the files, in large requests that bypass the page cache.

Each of its threads has one request, so that the disk always knows the next one. A waiting thread releases the interpreter lock.

Not every window is read into the ring:
- A window that is in the page cache already is not read. Each process maps it from its file.
- A window that is too large for the ring is read into the page cache, if there is room for it. Otherwise the processes read it in turn,
  each its own part, if these parts lie one after the other in the file.

If a file system does not support direct I/O, the reader reads through the page cache, and drops the pages that it has read from the cache.
"""

from __future__ import annotations

import errno
import mmap
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice

from .large_pages import LARGE_PAGE, join_pages
from .ring_layout import PAGE, RingPlace
from .shared_ring import IN_FILE, IN_RING, IN_TURN, SharedRing

PIECE = 4 << 20  # bytes of one read; the kernel may split it into several requests to the disk
_AHEAD = 2  # concurrent reads: with more, the disk gets many small requests at a time, out of order
# A disk that reads so many bytes per second, which no hard disk does, gets more concurrent reads once so many bytes have been read.
_FAST, _JUDGED_AFTER, _MORE = 400 << 20, 64 << 20, 6
_PROBE = 256 << 10  # bytes between two pages that are looked up in the page cache
_MOST_DIMENSIONS_IN_TURN = 2  # of a tensor whose parts, one for each process, lie one after the other in the file


class _Source:
    """An open file.

    cold: a page of it was not in the page cache. buffered_only: its file system does not support direct I/O (O_DIRECT).
    """

    def __init__(self, file: str) -> None:
        self.buffered = self.direct = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        self.cold = self.buffered_only = False
        try:
            os.posix_fadvise(self.buffered, 0, 0, os.POSIX_FADV_RANDOM)  # no read-ahead: a read of one page reads just that page
            self.direct = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
        except OSError:
            self.buffered_only = True

    def close(self) -> None:
        for descriptor in {self.buffered, self.direct}:
            os.close(descriptor)


@dataclass
class _Window:
    """A window that is being read."""

    index: int
    source: _Source
    left: int  # pieces that have not been read yet
    state: int  # is published once all pieces have been read
    failed: bool = False


@dataclass(frozen=True)
class _Piece:
    window: _Window
    begin: int  # its offset in the file
    needed: int  # bytes that have to be read; only the rest of a page follows them
    target: memoryview | None  # its place in the ring; None if it is read into the page cache


class RingReader:
    """Fills the ring in background threads, until all windows have been read or no process takes any more.

    cache: the size in bytes up to which a window that is too large for the ring is read into the page cache.
    """

    def __init__(self, ring: SharedRing, places: Sequence[RingPlace], cache: int = 0) -> None:
        self._ring, self._cache = ring, cache
        self._places = places
        self._memory = ring.map_shared()
        self._descriptor = os.dup(ring.descriptor)  # the walk of this process closes the original
        self._sources: dict[str, _Source] = {}
        self._piece_lock, self._count_lock = threading.Lock(), threading.Lock()
        self._begin = 0  # the first window that may have to be read
        self._joined = 0  # bytes of the ring that have been given large pages
        self._pieces = self._split()
        self._threads: list[threading.Thread] = []
        self._running = _AHEAD  # threads, counted before they start
        self._began, self._read = 0.0, 0  # when the reading began, and the bytes that have been read since

    def start(self) -> None:
        """Start to read in the background. The threads end after the last window, and at the latest with the process."""
        self._begin = self._skip_cached()
        self._began = time.monotonic()
        self._start_threads(_AHEAD)

    def join(self) -> None:
        """Wait until all windows have been read, no process takes from the ring any more, and the memory of the ring has been freed."""
        for thread in self._threads:
            thread.join()

    def _start_threads(self, count: int) -> None:
        threads = [threading.Thread(target=self._read_pieces, name="vllm-safe-read", daemon=True) for _ in range(count)]
        self._threads += threads
        for thread in threads:
            thread.start()

    def _read_pieces(self) -> None:
        try:
            while piece := self._take_piece():
                if self._finish_piece(piece, whole=_read(piece)):
                    self._start_threads(_MORE)
        finally:
            with self._count_lock:
                self._running -= 1
                is_last = not self._running
            if is_last:
                self._finish()

    def _take_piece(self) -> _Piece | None:
        with self._piece_lock:
            return next(self._pieces, None)

    def _finish_piece(self, piece: _Piece, *, whole: bool) -> bool:
        """Record that a piece has been read. Return whether the disk turns out to be fast, once."""
        window = piece.window
        with self._count_lock:
            before, self._read = self._read, self._read + piece.needed
            window.failed |= not whole
            window.left -= 1
            if not window.left:  # after a failure, each process maps the file, and gets the error itself
                self._ring.publish(window.index, IN_FILE if window.failed else window.state)
            judged = before < _JUDGED_AFTER <= self._read
            is_fast = judged and self._read >= _FAST * (time.monotonic() - self._began)
            self._running += _MORE if is_fast else 0
        return is_fast

    def _finish(self) -> None:
        """Free the memory of the ring once no process takes from it. Otherwise a single mapping that is kept would keep all of the ring."""
        self._ring.publish_rest(IN_FILE)
        os.close(self._descriptor)
        for source in self._sources.values():
            source.close()
        self._ring.wait_ended()
        last = self._places[-1] if self._places else None  # its tensors may still be held; their mapping frees the memory
        begin, end = (last.offset, last.offset + last.size) if last and last.offset is not None else (0, 0)
        with suppress(OSError):
            for start, stop in ((0, begin), (end, self._ring.shape.capacity)):
                if start < stop:
                    self._memory.madvise(mmap.MADV_REMOVE, start, stop - start)

    def _skip_cached(self) -> int:
        """Publish the windows at the beginning that need no reading. Return their number.

        The thread that takes tensors does this first. Once it takes them, it keeps the interpreter lock from the reading threads.
        """
        for index, place in enumerate(self._places):
            if self._find_source(place) is not None:
                return index
            self._ring.publish(index, IN_FILE)
        return len(self._places)

    def _find_source(self, place: RingPlace) -> _Source | None:
        """Return the file from which a window is read; None if the window is empty or cached, or if the file cannot be opened."""
        with suppress(OSError):
            source = self._open(place.window.file)
            return source if place.window.size and not _is_cached(source, place) else None
        return None

    def _split(self) -> Iterator[_Piece]:
        """Yield the pieces of all windows, each as soon as its place in the ring is free."""
        cached = 0  # the number of windows up to the last one in the page cache
        for index, place in islice(enumerate(self._places), self._begin, None):
            if not (source := self._find_source(place)):
                self._ring.publish(index, IN_FILE)  # without waiting for any process
            elif not self._ring.wait_done(place.after + 1):
                return
            elif place.offset is not None:
                self._join_pages(place.offset + place.size)
                yield from self._pieces_of(_Window(index, source, _pieces(place.size), IN_RING), place)
            elif place.window.size <= self._cache:
                self._ring.wait_passed(cached, self._ring.shape.ranks)  # at most one such window at a time
                cached = index + 1
                yield from self._pieces_of(_Window(index, source, _pieces(place.size), IN_FILE), place)
            else:
                in_turn = len(place.window.tensors[0].shape) <= _MOST_DIMENSIONS_IN_TURN
                self._ring.publish(index, IN_TURN if in_turn else IN_FILE)
                self._ring.wait_passed(index + 1, self._ring.shape.ranks)  # the processes have the disk to themselves

    def _join_pages(self, end: int) -> None:
        """Make large pages of the ring up to `end`. Meanwhile, another thread reads: 768 MiB of them take 0.4 to 1.3 s."""
        if end > self._joined:
            begin, shape = self._joined, self._ring.shape
            self._joined = -(-end // LARGE_PAGE) * LARGE_PAGE
            join_pages(self._descriptor, shape.header + begin, min(self._joined, shape.capacity) - begin)

    def _pieces_of(self, window: _Window, place: RingPlace) -> Iterator[_Piece]:
        """Yield the pieces of a window, all of about the same size, so that none is small."""
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
    """Return whether all of a window seems to be in the page cache, by a sample of its pages.

    After the first page that is missing, the file counts as cold. It is not probed again: a probe of a missing page makes the kernel read
    it.
    """
    page = [bytearray(PAGE)]
    if source.cold:
        return False
    with suppress(OSError):
        source.cold = not all(os.preadv(source.buffered, page, at, os.RWF_NOWAIT) for at in range(place.begin, place.window.end, _PROBE))
        return not source.cold
    source.cold = True
    return False


def _read(piece: _Piece) -> bool:
    """Read a piece; return whether all its needed bytes have been read."""
    source, target = piece.window.source, piece.target
    if target is None:
        return _read_buffered(source.buffered, piece, memoryview(bytearray(piece.needed)))
    if not source.buffered_only:
        try:
            return os.preadv(source.direct, [target], piece.begin) >= piece.needed
        except OSError as error:
            if error.errno != errno.EINVAL:
                return False
            source.buffered_only = True
    whole = _read_buffered(source.buffered, piece, target)
    with suppress(OSError):  # the file system may not support posix_fadvise(2)
        os.posix_fadvise(source.buffered, piece.begin, piece.needed, os.POSIX_FADV_DONTNEED)
    return whole


def _read_buffered(descriptor: int, piece: _Piece, target: memoryview) -> bool:
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
    """Reads a range of a file into the page cache, in order, while a process takes a tensor from a mapping of it."""

    def __init__(self, file: str, begin: int, end: int) -> None:
        self._file, self._begin, self._end = file, begin, end
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="vllm-safe-ahead", daemon=True)

    def __enter__(self) -> None:
        """Start to read."""
        self._thread.start()

    def __exit__(self, *_error: object) -> None:
        """Stop reading, and wait for the thread."""
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
