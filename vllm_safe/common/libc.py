"""System calls, and one function of libc, that Python has no function for. The calls raise OSError as Python's own would."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct

_libc = ctypes.CDLL(None, use_errno=True)
_INT64 = ctypes.c_int64

_RENAME_NOREPLACE = 1  # linux/fs.h
_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4  # asm-generic/mman.h
_FS_IOC_GETFLAGS, _FS_IOC_SETFLAGS = 0x80086601, 0x40086602  # linux/fs.h, where a long has 64 bits
_REG_EXTENDED, _REG_NOSUB = 1, 1 << 3  # regex.h
# By machine: the numbers of ioprio_set and ioprio_get, which glibc has no functions for (asm/unistd.h).
_IOPRIO_CALLS = {"x86_64": (251, 252), "aarch64": (30, 31), "riscv64": (30, 31), "ppc64le": (273, 274), "s390x": (282, 283)}
IO_CLASSES = {"best-effort": 2 << 13 | 4, "idle": 3 << 13}  # systemd's words: class << 13 | level, of which 4 is the usual one
_IOPRIO_WHO_PROCESS = 1  # linux/ioprio.h; it means a thread
_FS_COMPR_FL, _FS_NOCOW_FL = 0x00000004, 0x00800000


def _call(name: str, *arguments: object) -> None:
    """Call a function of libc that returns -1 and sets errno; again when a signal, which Python has handled by then, broke it off."""
    while getattr(_libc, name)(*arguments) == -1:
        if (code := ctypes.get_errno()) != errno.EINTR:
            raise OSError(code, os.strerror(code))


def fallocate(file: int, offset: int, length: int) -> None:
    """Allocate blocks that read as zeros (fallocate(2)). EOPNOTSUPP where the file system cannot: nothing is written instead."""
    _call("fallocate64", file, 0, _INT64(offset), _INT64(length))


def swapon(path: str) -> None:
    """Start to use the swapfile (swapon(2)), with the priority that the kernel chooses."""
    _call("swapon", os.fsencode(path), 0)


def swapoff(path: str) -> None:
    """Bring back into RAM what is swapped out to `path`, and stop using it. Takes long; broken off by a signal it stays on."""
    _call("swapoff", os.fsencode(path))


def may_swap() -> bool:
    """Whether this process may call swapon: not in most containers, whose system call filter or lack of capabilities says EPERM."""
    try:
        swapoff("")  # permission is looked at before the path, and there is no such file
    except PermissionError:
        return False
    except OSError:
        return True
    return True


def rename_new(folder: int, source: str, target: str) -> None:
    """Rename within a folder; FileExistsError when there is a `target` (renameat2(2) with RENAME_NOREPLACE)."""
    _call("renameat2", folder, os.fsencode(source), folder, os.fsencode(target), _RENAME_NOREPLACE)


def set_nocow(file: int) -> None:
    """Have an empty file of btrfs overwritten in place, uncompressed and without checksums, as `chattr +C -c` does."""
    flags = struct.unpack("i", fcntl.ioctl(file, _FS_IOC_GETFLAGS, bytes(4)))[0]
    fcntl.ioctl(file, _FS_IOC_SETFLAGS, struct.pack("i", (flags | _FS_NOCOW_FL) & ~_FS_COMPR_FL))


def regex_error(pattern: str) -> str | None:
    """What regcomp(3) has against an extended regular expression, or None: the judge is the one that earlyoom asks."""
    compiled = ctypes.create_string_buffer(512)  # a regex_t: 64 bytes on 64-bit glibc, 32 on musl
    if not (code := _libc.regcomp(compiled, os.fsencode(pattern), _REG_EXTENDED | _REG_NOSUB)):
        _libc.regfree(compiled)
        return None
    said = ctypes.create_string_buffer(200)
    _libc.regerror(code, compiled, said, ctypes.c_size_t(len(said)))
    return said.value.decode(errors="replace")


def lock_memory() -> None:
    """Keep every page of this process in RAM from when it is first touched (mlockall(2)): now, and what is mapped later."""
    _call("mlockall", _MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT)


def set_io_priority(thread: int, priority: int) -> None:
    """Whose turn it is at the disks (ioprio_set(2)): class and level of one thread, 0 for the own one, as IO_CLASSES has them."""
    _io_priority_call(0, _IOPRIO_WHO_PROCESS, thread, priority)


def io_priority(thread: int) -> int:
    """The same, as it is (ioprio_get(2))."""
    return _io_priority_call(1, _IOPRIO_WHO_PROCESS, thread)


def _io_priority_call(which: int, *arguments: int) -> int:
    numbers = _IOPRIO_CALLS.get(os.uname().machine)
    if numbers is None:
        raise OSError(errno.ENOSYS, "this kind of machine is not known to have I/O priorities")
    if (answer := _libc.syscall(numbers[which], *arguments)) == -1:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return int(answer)
