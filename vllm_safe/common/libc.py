"""System calls, and one function of libc, that Python's standard library does not have. They raise OSError as Python's own calls do."""

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
# The numbers of the system calls ioprio_set and ioprio_get, by machine (asm/unistd.h): glibc has no functions for them.
_IOPRIO_CALLS = {"x86_64": (251, 252), "aarch64": (30, 31), "riscv64": (30, 31), "ppc64le": (273, 274), "s390x": (282, 283)}
IO_CLASSES = {"best-effort": 2 << 13 | 4, "idle": 3 << 13}  # systemd's names; class << 13 | level, and 4 is the default level
_IOPRIO_WHO_PROCESS = 1  # linux/ioprio.h; despite its name it selects a thread
_FS_COMPR_FL, _FS_NOCOW_FL = 0x00000004, 0x00800000


def _call(name: str, *arguments: object) -> None:
    """Call a function of libc that returns -1 and sets errno on an error. Raises OSError.

    A call that a signal interrupted (EINTR) is repeated; Python has handled the signal by then.
    """
    while getattr(_libc, name)(*arguments) == -1:
        if (code := ctypes.get_errno()) != errno.EINTR:
            raise OSError(code, os.strerror(code))


def fallocate(file: int, offset: int, length: int) -> None:
    """Allocate blocks that read as zeros (fallocate(2)).

    Raises OSError; its errno is EOPNOTSUPP where the file system cannot allocate. Zeros are never written instead.
    """
    _call("fallocate64", file, 0, _INT64(offset), _INT64(length))


def swapon(path: str) -> None:
    """Activate the swapfile (swapon(2)), with the priority that the kernel chooses. Raises OSError."""
    _call("swapon", os.fsencode(path), 0)


def swapoff(path: str) -> None:
    """Read back into RAM what is swapped out to `path`, and deactivate it (swapoff(2)). Raises OSError.

    The call can take long. If a signal interrupts it, the swap space stays active.
    """
    _call("swapoff", os.fsencode(path))


def may_swap() -> bool:
    """Return whether this process may call swapon.

    In most containers it may not: their system call filter or the missing capability gives EPERM.
    """
    try:
        swapoff("")  # the kernel checks the permission before the path, and this path does not exist
    except PermissionError:
        return False
    except OSError:
        return True
    return True


def rename_new(folder: int, source: str, target: str) -> None:
    """Rename within a folder (renameat2(2) with RENAME_NOREPLACE). Raises FileExistsError if `target` exists, else OSError."""
    _call("renameat2", folder, os.fsencode(source), folder, os.fsencode(target), _RENAME_NOREPLACE)


def set_nocow(file: int) -> None:
    """Make btrfs overwrite an empty file in place, without compression and checksums, as `chattr +C -c` does. Raises OSError."""
    flags = struct.unpack("i", fcntl.ioctl(file, _FS_IOC_GETFLAGS, bytes(4)))[0]
    fcntl.ioctl(file, _FS_IOC_SETFLAGS, struct.pack("i", (flags | _FS_NOCOW_FL) & ~_FS_COMPR_FL))


def regex_error(pattern: str) -> str | None:
    """Return the error that regcomp(3) gives for an extended regular expression, or None. earlyoom compiles its patterns with it too."""
    compiled = ctypes.create_string_buffer(512)  # a regex_t: 64 bytes on 64-bit glibc, 32 on musl
    if not (code := _libc.regcomp(compiled, os.fsencode(pattern), _REG_EXTENDED | _REG_NOSUB)):
        _libc.regfree(compiled)
        return None
    message = ctypes.create_string_buffer(200)
    _libc.regerror(code, compiled, message, ctypes.c_size_t(len(message)))
    return message.value.decode(errors="replace")


def lock_memory() -> None:
    """Lock every page of this process into RAM once it has been touched (mlockall(2)), now and for later mappings. Raises OSError."""
    _call("mlockall", _MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT)


def set_io_priority(thread: int, priority: int) -> None:
    """Set the I/O scheduling class and level of one thread (ioprio_set(2)), encoded as in IO_CLASSES. Thread 0 is the caller's.

    Raises OSError.
    """
    _io_priority_call(0, _IOPRIO_WHO_PROCESS, thread, priority)


def io_priority(thread: int) -> int:
    """Return the I/O scheduling class and level of one thread (ioprio_get(2)), encoded as in IO_CLASSES. Raises OSError."""
    return _io_priority_call(1, _IOPRIO_WHO_PROCESS, thread)


def _io_priority_call(which: int, *arguments: int) -> int:
    numbers = _IOPRIO_CALLS.get(os.uname().machine)
    if numbers is None:
        raise OSError(errno.ENOSYS, "the I/O priority system calls of this architecture are not known")
    if (answer := _libc.syscall(numbers[which], *arguments)) == -1:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return int(answer)
