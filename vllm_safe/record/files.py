"""Small files, read and written with care: the other side may be user vllm, a full disk or a power cut."""

from __future__ import annotations

import os
import stat

READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # O_NONBLOCK: a pipe of that name must not stop us
_WRITE = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC

MODE = 0o640  # the recorder, and the group of the folder


def read_regular(path: str | os.PathLike[str], most: int) -> bytes | None:
    """The content of a regular file that anybody may have put there; None if there is none, or if it is larger than `most` bytes.

    Links are not followed, and nothing that is no file is waited for.
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
    """Put `content` at `path`, all of it or nothing, also after a power cut if it is to `sync`. The folder is the caller's alone."""
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
        remove(temporary)
        raise
    if sync:
        sync_folder(os.path.dirname(path))


def write_all(handle: int, content: bytes, offset: int) -> None:
    """pwrite(2) until all is written; OSError where the disk is full."""
    view = memoryview(content)
    while view:
        written = os.pwrite(handle, view, offset)
        view, offset = view[written:], offset + written


def sync_folder(path: str) -> None:
    """Have the names of its files survive a power cut."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove(path: str) -> None:
    """Take a file away, if it can be."""
    try:
        os.unlink(path)
    except OSError:
        return
