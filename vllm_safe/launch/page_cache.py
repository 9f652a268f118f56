"""The page cache: which pages of a file are in it, where they are on the disk, and how they are read into it in large requests.

Only processes that end soon or become the server import this module: ctypes must not stay resident in the main process.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vllm_safe.common.kernfs import parse_flat_keyed, parse_meminfo, parse_number, read_kernel_file
from vllm_safe.contract.small_files import READ
from vllm_safe.launch.engine_files import PAGE

_CGROUPS = Path("/sys/fs/cgroup")
_PROT_NONE, _PROT_READ = 0, 1  # asm-generic/mman-common.h
_MAP_SHARED, _MAP_PRIVATE, _MAP_FIXED, _MAP_ANONYMOUS = 0x01, 0x02, 0x10, 0x20
_MADV_WILLNEED = 3
_FS_IOC_FIEMAP = 0xC020660B  # linux/fiemap.h
_FIEMAP_EXTENTS = 64  # extents per file that are requested; installed files have one or two
# On a network or in RAM, reading ahead gains nothing. ZFS has a cache of its own beside the page cache.
_NOT_A_DISK = frozenset({"tmpfs", "ramfs", "nfs", "nfs4", "lustre", "cifs", "smb3", "ceph", "9p", "virtiofs", "fuse.sshfs", "zfs"})

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_libc.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
_FAILED = ctypes.c_void_p(-1).value


def resident_pages(file: int, offset: int, length: int) -> bytes:
    """Return, for each page of a part of an open file, 1 if it is in the page cache and 0 if not (mincore(2)).

    The kernel tells the truth only to the file's owner. To others it reports all pages as present. Raises OSError.
    """
    with _mapping(length, _PROT_READ, _MAP_SHARED, file, offset) as address:
        vector = ctypes.create_string_buffer(-(-length // PAGE))
        if _libc.mincore(address, length, vector):
            raise _error()
        return bytes(byte & 1 for byte in vector.raw)


def file_extents(file: int) -> tuple[tuple[int, int, int], ...]:
    """Return the extents of an open file or folder: (offset, position on the disk, length) in bytes; () if the file system reports none."""
    request = bytearray(struct.pack("=QQLLLL", 0, 2**64 - 1, 0, 0, _FIEMAP_EXTENTS, 0) + bytes(56 * _FIEMAP_EXTENTS))
    try:
        fcntl.ioctl(file, _FS_IOC_FIEMAP, request)
    except OSError:
        return ()
    count: int = struct.unpack_from("=L", request, 20)[0]
    return tuple(struct.unpack_from("=QQQ", request, 32 + 56 * index) for index in range(count))


def request_reading(parts: Iterable[tuple[str, int, int]]) -> None:
    """Ask the kernel to read parts of files, without waiting. A file that cannot be opened is skipped. Raises OSError if memory is short.

    The parts are mapped side by side, and one madvise(2) covers them all. The kernel submits the requests of such a call together, and
    merges those for files that are adjacent on the disk.
    """
    wanted = list(parts)
    total = sum(_whole_pages(length) for _, _, length in wanted)
    with _mapping(total, _PROT_NONE, _MAP_PRIVATE | _MAP_ANONYMOUS) as base:
        address = base
        for path, offset, length in wanted:
            with suppress(OSError), _opened(path) as file:
                if _libc.mmap(address, length, _PROT_READ, _MAP_SHARED | _MAP_FIXED, file, offset) == _FAILED:
                    continue
                address += _whole_pages(length)
        if address > base:
            _libc.madvise(base, address - base, _MADV_WILLNEED)


def wait_for_page(path: str, offset: int) -> None:
    """Wait until a page of a file is in the page cache."""
    with suppress(OSError), _opened(path) as file:
        os.pread(file, 1, offset)


def is_on_disk(path: str) -> bool:
    """Return whether a path is on a disk, according to the kernel's list of mounts."""
    device = Path(path).stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    rows = (line.partition(" - ") for line in read_kernel_file("/proc/self/mountinfo").splitlines())
    return not any(left.split()[2] == wanted and right.split()[0] in _NOT_A_DISK for left, _, right in rows)


def read_cache_room(unit: Path | None) -> int:
    """Return the bytes of page cache that a unit can still use, within the limits of its control groups and of the machine."""
    rooms = [parse_meminfo(read_kernel_file("/proc/meminfo")).get("MemAvailable", 0)]
    while unit and unit != _CGROUPS and _CGROUPS in unit.parents:
        limit = parse_number(read_kernel_file(f"{unit}/memory.max"))
        if limit is not None:
            used = parse_number(read_kernel_file(f"{unit}/memory.current")) or 0
            figures = parse_flat_keyed(read_kernel_file(f"{unit}/memory.stat"))
            rooms.append(limit - used + figures.get("active_file", 0) + figures.get("inactive_file", 0))
        unit = unit.parent
    return max(0, min(rooms))


@contextmanager
def _opened(path: str) -> Iterator[int]:
    """Open a regular file without following symlinks. Raises OSError."""
    file = os.open(path, READ)
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", path)
        yield file
    finally:
        os.close(file)


@contextmanager
def _mapping(length: int, protection: int, flags: int, file: int = -1, offset: int = 0) -> Iterator[int]:
    address = _libc.mmap(None, length, protection, flags, file, offset)
    if address == _FAILED:
        raise _error()
    try:
        yield address
    finally:
        _libc.munmap(address, length)


def _whole_pages(length: int) -> int:
    return -(-length // PAGE) * PAGE


def _error() -> OSError:
    code = ctypes.get_errno()
    return OSError(code, os.strerror(code))
