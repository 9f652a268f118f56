"""Reading and writing of small files, safe against user vllm, a full disk and a power cut."""

from __future__ import annotations

import os
import stat

READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # O_NONBLOCK: opening a pipe of that name must not block
_WRITE = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC

MODE = 0o640  # readable by the recorder and the group of the directory


def read_regular(path: str | os.PathLike[str], most: int) -> bytes | None:
    """Read a regular file that any user may have created. Return None if there is none, or if it is larger than `most` bytes.

    Symbolic links are not followed, and opening a pipe or device does not block.
    """
    try:
        handle = os.open(path, READ)
    except OSError:
        return None
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            return None
        content = b""
        while len(content) <= most and (more := os.read(handle, most + 1 - len(content))):
            content += more
    except OSError:
        return None
    finally:
        os.close(handle)
    return content if len(content) <= most else None


def write_whole(path: str, content: bytes, mode: int = MODE, *, sync: bool = True) -> None:
    """Write a file atomically; with `sync`, also with respect to a power cut. Nobody else may write to its directory. Raises OSError."""
    temporary = f"{path}.new"
    try:
        handle = os.open(temporary, _WRITE, mode)
        try:
            os.fchmod(handle, mode)
            write_all(handle, content, 0)
            if sync:
                os.fsync(handle)
        finally:
            os.close(handle)
        os.rename(temporary, path)
    except OSError:
        remove_if_possible(temporary)
        raise
    if sync:
        sync_folder(os.path.dirname(path))


def write_all(handle: int, content: bytes, offset: int) -> None:
    """Call pwrite(2) until all of `content` is written. Raises OSError, for example if the disk is full."""
    view = memoryview(content)
    while view:
        written = os.pwrite(handle, view, offset)
        view, offset = view[written:], offset + written


def sync_folder(path: str) -> None:
    """Call fsync(2) for a directory, so that the names of its files survive a power cut. Raises OSError."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_if_possible(path: str) -> None:
    """Take a file away, if it can be."""
    try:
        os.unlink(path)
    except OSError:
        return
