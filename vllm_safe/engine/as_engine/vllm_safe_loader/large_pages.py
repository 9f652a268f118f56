"""Large pages for a memory file: of 4 MiB in small ones, a disk of 30 segments gets 35 requests; in large ones, as few as it can."""

from __future__ import annotations

import ctypes
import mmap

LARGE_PAGE = 2 << 20  # bytes
_NO_ACCESS, _FIXED, _COLLAPSE = 0, 0x10, 25  # PROT_NONE, MAP_FIXED, MADV_COLLAPSE (Linux 6.1)


def join_pages(descriptor: int, begin: int, size: int) -> None:
    """Have the kernel make large pages of a part of a memory file, which begins at a multiple of one, as far as it has any.

    It does so only where a mapping, too, begins at a multiple of one, which Python's mmap cannot ask for.
    """
    size = size // LARGE_PAGE * LARGE_PAGE
    libc = ctypes.CDLL(None)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    failed = ctypes.c_void_p(-1).value
    if not size or (place := libc.mmap(None, size + LARGE_PAGE, _NO_ACCESS, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)) == failed:
        return
    start = -(-place // LARGE_PAGE) * LARGE_PAGE
    if libc.mmap(start, size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED | _FIXED, descriptor, begin) == start:
        for large in range(start, start + size, LARGE_PAGE):
            ctypes.memset(large, 0, 1)  # what has no page yet is not looked at
            if libc.madvise(large, LARGE_PAGE, _COLLAPSE):
                break
    libc.munmap(place, size + LARGE_PAGE)
