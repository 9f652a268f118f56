"""Large pages for a memfd.

A read of 4 MiB into pages of 4 KiB becomes 35 requests on a disk that takes 30 segments per request. Into large pages, it becomes as few
requests as the disk allows.
"""

from __future__ import annotations

import ctypes
import mmap

LARGE_PAGE = 2 << 20  # bytes
_NO_ACCESS, _FIXED, _COLLAPSE = 0, 0x10, 25  # PROT_NONE, MAP_FIXED, MADV_COLLAPSE (Linux 6.1)


def join_pages(descriptor: int, begin: int, size: int) -> None:
    """Have the kernel back a range of a memfd with large pages, as long as it has any. The range begins at a multiple of LARGE_PAGE.

    The kernel does so only if the mapping begins at such a multiple, too. Python's mmap cannot choose the address, so this calls libc.
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
        for address in range(start, start + size, LARGE_PAGE):
            ctypes.memset(address, 0, 1)  # MADV_COLLAPSE ignores a range that has no page yet
            if libc.madvise(address, LARGE_PAGE, _COLLAPSE):
                break
    libc.munmap(place, size + LARGE_PAGE)
