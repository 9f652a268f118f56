"""The walk of all processes through the windows: one of them reads the next window while all take their part of this one.

The window is read into the page cache, in order and in large requests. Who takes a tensor maps it from the file, so what it gets never
depends on this: where the cache has lost a page, it is read again.
"""

from __future__ import annotations

import mmap
import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import suppress

from .shard_layout import ReadWindow

_PIECE = 1 << 20  # bytes of one request
_AHEAD = 8  # requests that the disk has at once


def walk_windows(windows: Sequence[ReadWindow], *, reads: bool, room: int, drop: bool, meet: Callable[[], object]) -> Generator[ReadWindow]:
    """Give the windows one after the other; all processes are in the same one. `meet` returns once all have called it.

    reads: this process is the one that reads. room: bytes of cache. Where two windows do not fit, the second is read when the first is done
    with; a window that does not fit alone is left to the page faults of those who take it.
    drop: what all are done with leaves the cache. A caller that ends early takes part in the meetings to the last.
    """
    ahead = [index > 0 and windows[index - 1].size + window.size <= room for index, window in enumerate(windows)]
    left = len(windows) + ahead.count(False)
    done: deque[ReadWindow] = deque(maxlen=2)  # a caller may still hold the last tensor of a window when it is dropped: again, then
    reading: threading.Thread | None = None
    try:
        for index, window in enumerate(windows):
            if not ahead[index]:
                meet()
                left -= 1
                if reads:
                    _drop(done if drop else ())
                    read_window(window, room)
            elif reading:
                reading.join()
            meet()
            left -= 1
            if reads:
                _drop(done if drop else ())
                done.append(window)
            if reads and index + 1 < len(windows) and ahead[index + 1]:
                reading = threading.Thread(target=read_window, args=(windows[index + 1], room), daemon=True)
                reading.start()
            yield window
        if reads:
            _drop(done if drop else ())
    except GeneratorExit:
        for _ in range(left):
            meet()
        raise


def read_window(window: ReadWindow, room: int) -> None:
    """Read the window into the page cache, where it fits. Whoever takes it meets the errors of the disk."""
    if window.size > room:
        return
    buffer = mmap.mmap(-1, _PIECE)
    descriptor = os.open(window.file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        starts = range(window.begin, window.end, _PIECE)
        for index, offset in enumerate(starts):
            for ahead in range(0 if index == 0 else _AHEAD - 1, _AHEAD):
                _advise(descriptor, offset + ahead * _PIECE, window.end)
            os.preadv(descriptor, [memoryview(buffer)[: min(_PIECE, window.end - offset)]], offset)
    except OSError:
        return
    finally:
        os.close(descriptor)


def _drop(windows: Iterable[ReadWindow]) -> None:
    for window in windows:
        descriptor = os.open(window.file, os.O_RDONLY | os.O_CLOEXEC)
        with suppress(OSError):  # a file system that knows no advice
            os.posix_fadvise(descriptor, window.begin, window.size, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def _advise(descriptor: int, begin: int, end: int) -> None:
    if begin < end:
        with suppress(OSError):
            os.posix_fadvise(descriptor, begin, min(_PIECE, end - begin), os.POSIX_FADV_WILLNEED)
