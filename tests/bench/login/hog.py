"""The hogs, each a program in the place of a model server: `hog.py KIND RAM SECONDS`, RAM in bytes. Runs in the guest, without the package.

Each counts the pages that it touches, or the bytes that it reads, in the file `progress` of its working folder.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import random
import struct
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

PAGE, CHUNK = 4096, 4 << 20
FILES = Path("/srv/hog")  # the files that the reader reads, made before
NOISE = random.randbytes(CHUNK)  # noqa: S311 - not a secret, but data that no compressor makes smaller
COUNT = struct.Struct("=Q")


def touch(memory: mmap.mmap, pages: int, number: int = 0) -> Iterator[int]:
    """Write pages at random, for ever. Yield the number of pages since the last yield."""
    pick = random.Random(number).random  # noqa: S311 - not a secret
    while True:
        for _ in range(64):
            page, start = int(pick() * pages) * PAGE, int(pick() * (CHUNK - PAGE))
            memory[page : page + PAGE] = NOISE[start : start + PAGE]
        yield 64


def take(size: int) -> mmap.mmap:
    """Return untouched anonymous memory."""
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def anonymous(size: int, number: int) -> Iterator[int]:
    """Fill the first half of the memory in sequence, then write pages at random."""
    memory = take(size)
    for start in range(0, size // 2 - CHUNK, CHUNK):
        memory[start : start + CHUNK] = NOISE
        yield CHUNK // PAGE
    yield from touch(memory, size // PAGE, number)


def leak(size: int, seconds: float) -> Iterator[int]:
    """Allocate more and more at an even rate and free nothing, so that the limit is exceeded in half of the time."""
    begin, memory = time.monotonic(), take(size)
    for start in range(0, size - CHUNK, CHUNK):
        memory[start : start + CHUNK] = NOISE
        yield CHUNK // PAGE
        time.sleep(max(0.0, begin + start / size * seconds - time.monotonic()))
    yield from touch(memory, size // PAGE)


def read(number: int) -> Iterator[int]:
    """Read the files from beginning to end, again and again, as loading weights does."""
    paths = sorted(FILES.iterdir())
    while True:
        for path in paths[number:] + paths[:number]:
            with path.open("rb", buffering=0) as file:
                while chunk := file.read(1 << 20):
                    yield len(chunk) // PAGE


def lock(size: int) -> Iterator[int]:
    """Lock memory so that the kernel cannot reclaim it, as pinned CUDA memory; then touch the same amount that is not locked."""
    libc, locked = ctypes.CDLL(None, use_errno=True), []
    for _ in range(0, size, CHUNK):
        memory = take(CHUNK)
        memory[:] = NOISE
        libc.mlock(ctypes.byref(ctypes.c_char.from_buffer(memory)), ctypes.c_size_t(CHUNK))
        locked.append(memory)
        yield CHUNK // PAGE
    yield from anonymous(size, 0)


def crew(kind: str, ram: int, seconds: float) -> list[Callable[[], Iterator[int]]]:
    """Return what each process of a hog does."""
    kinds: dict[str, list[Callable[[], Iterator[int]]]] = {
        "anonymous": [lambda number=number: anonymous(ram * 24 // 10 // 4, number) for number in range(4)],
        "leak": [lambda: leak(ram * 2, seconds)],
        "reader": [lambda number=number: read(number) for number in range(4)],
        "forkbomb": [lambda number=number: anonymous(ram * 2 // 200, number) for number in range(200)],
        "mlock": [lambda: lock(ram // 2)],
    }
    return kinds[kind]


def main() -> None:
    """Start the processes and wait until this one is ended."""
    start_crew(crew(sys.argv[1], int(sys.argv[2]), float(sys.argv[3])))
    while True:
        time.sleep(3600)


def start_crew(workers: Sequence[Callable[[], Iterator[int]]]) -> None:
    """Start a process for each worker. It exits when its work is done."""
    with Path("progress").open("wb+") as file:
        file.truncate(len(workers) * COUNT.size)
        # An item is written in one go; struct.pack_into writes zeros first, which a reader of the file could see.
        counters = memoryview(mmap.mmap(file.fileno(), 0)).cast("Q")
    for number, worker in enumerate(workers):
        if not os.fork():
            done = 0
            for more in worker():
                done += more
                counters[number] = done
            os._exit(0)


if __name__ == "__main__":
    main()
