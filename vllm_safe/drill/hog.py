"""The hog: processes that touch memory at random, as much as they are told. Run by vllm-safe-drill.service as user vllm.

It ends by its own clock, and when its standard input ends: that is a pipe from the drill, which closes with it, however it dies.
Standard library only: it must start on a machine that has little to spare.
"""

from __future__ import annotations

import mmap
import os
import random
import select
import signal
import struct
import sys
import time

_PAGE = 4096
_NOISE = 4 << 20  # bytes; what no compressor (zswap, zram) makes smaller, as quantized weights
_BATCH = 8  # pages between two counts; where a page takes long, a minute may have no more than a few
_COUNT = struct.Struct("=Q")


def main() -> None:
    """`hog BYTES PROCESSES SECONDS`: prints each second how many pages were touched since the start."""
    size, processes, seconds = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    end = time.monotonic() + seconds
    counters = mmap.mmap(-1, processes * _COUNT.size)  # shared with the children
    children = [_start(size // processes, counters, number) for number in range(processes)]
    try:
        while (left := end - time.monotonic()) > 0:
            ready, _, _ = select.select([0], (), (), min(1.0, left))
            if ready and not os.read(0, 512):
                break
            if os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):  # killed by whatever was short of memory: so is all of it
                break
            sys.stdout.write(f"{sum(_COUNT.unpack_from(counters, number * _COUNT.size)[0] for number in range(processes))}\n")
            sys.stdout.flush()
    except OSError:  # nobody reads any more
        pass
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
    os._exit(0)  # what is left of the children is systemd's: the unit ends with this process


def _start(size: int, counters: mmap.mmap, number: int) -> int:
    if pid := os.fork():
        return pid
    try:
        _touch(size, counters, number)
    finally:
        os._exit(1)


def _touch(size: int, counters: mmap.mmap, number: int) -> None:
    """Write half of the memory from its beginning, which is quick, and then pages at random, for ever."""
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)  # one touch, one page
    noise, pages, touched = random.randbytes(_NOISE), size // _PAGE, 0  # noqa: S311 - not a secret
    for start in range(0, size // 2 - _NOISE, _NOISE):
        memory[start : start + _NOISE] = noise
    pick = random.Random(number).random  # noqa: S311 - likewise
    while True:
        for _ in range(_BATCH):
            page, start = int(pick() * pages) * _PAGE, int(pick() * (_NOISE - _PAGE))
            memory[page : page + _PAGE] = noise[start : start + _PAGE]
        touched += _BATCH
        _COUNT.pack_into(counters, number * _COUNT.size, touched)


if __name__ == "__main__":
    main()
