"""The hog: processes that touch a given amount of memory at random. vllm-safe-drill.service runs it as user vllm.

It ends after a given time, and when its standard input ends: that is a pipe from the drill, which closes when the drill ends, however
that happens. Standard library only, since the hog must start on a machine that has little memory to spare.
"""

from __future__ import annotations

import mmap
import os
import random
import select
import signal
import sys
import time

_PAGE = 4096
_NOISE = 4 << 20  # bytes of random data, which like quantized weights no compressor (zswap, zram) makes smaller
_BATCH = 8  # pages between two updates of the count; where a page takes long, only a few may be touched in a minute
_WORD = 8  # bytes of a count


def main() -> None:
    """Run `hog BYTES PROCESSES SECONDS`. Print every second how many pages were touched since the start."""
    size, processes, seconds = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    end = time.monotonic() + seconds
    # Shared with the children. An item is written in one go; struct.pack_into writes zeros first, which the parent could read.
    counters = memoryview(mmap.mmap(-1, processes * _WORD)).cast("Q")
    children = [_start(size // processes, counters, number) for number in range(processes)]
    try:
        while (left := end - time.monotonic()) > 0:
            ready, _, _ = select.select([0], (), (), min(1.0, left))
            if ready and not os.read(0, 512):
                break
            # A child that was killed for lack of memory ends the whole hog, as it would end a model.
            if os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                break
            sys.stdout.write(f"{sum(counters)}\n")
            sys.stdout.flush()
    except OSError:  # nobody reads the standard output any more
        pass
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
    os._exit(0)  # systemd ends what is left of the children: the unit ends with this process


def _start(size: int, counters: memoryview, number: int) -> int:
    if pid := os.fork():
        return pid
    try:
        _touch(size, counters, number)
    finally:
        os._exit(1)


def _touch(size: int, counters: memoryview, number: int) -> None:
    """Write the first half of the memory in sequence, which is quick, and then pages at random, for ever."""
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)  # so that one touch is one page
    noise, pages, touched = random.randbytes(_NOISE), size // _PAGE, 0  # noqa: S311 - not a secret
    for start in range(0, size // 2 - _NOISE, _NOISE):
        memory[start : start + _NOISE] = noise
    pick = random.Random(number).random  # noqa: S311 - not a secret
    while True:
        for _ in range(_BATCH):
            page, start = int(pick() * pages) * _PAGE, int(pick() * (_NOISE - _PAGE))
            memory[page : page + _PAGE] = noise[start : start + _PAGE]
        touched += _BATCH
        counters[number] = touched


if __name__ == "__main__":
    main()
