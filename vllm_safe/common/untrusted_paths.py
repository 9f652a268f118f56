"""Access to files in folders of user vllm, which can contain hostile links. No link that leads out of such a folder is followed.

Not even a stat() follows one: a link can lead into a network mount that hangs, and the call would then never return.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

LOOK = os.O_PATH | os.O_CLOEXEC  # a descriptor of a file that is not opened: no device or pipe is touched
_MOST_LINKS = 40  # on one path, as in the kernel (path_resolution(7))


def open_below(top: int, names: Iterable[str]) -> int:
    """Open a folder some levels below `top` and return its descriptor, which the caller closes.

    Raises OSError if the folder does not exist; its errno is ELOOP if one of the names is a link.
    """
    folder = os.dup(top)
    for name in names:
        try:
            child = os.open(name, LOOK | os.O_NOFOLLOW, dir_fd=folder)
        finally:
            os.close(folder)
        folder = child
        mode = os.fstat(folder).st_mode
        if not stat.S_ISDIR(mode):
            os.close(folder)
            code = errno.ELOOP if stat.S_ISLNK(mode) else errno.ENOTDIR
            raise OSError(code, os.strerror(code), name)
    return folder


def find_program(path: Path) -> bool | None:
    """Whether an executable file is at the absolute `path`; None if the path leads over a link that is not followed.

    Links in folders that only root or the caller may write are followed. In other folders, only links to something below the folder are.
    """
    if not path.is_absolute():
        return False
    folder = os.open("/", LOOK | os.O_DIRECTORY)
    names, links = list(reversed(path.parts[1:])), 0
    try:
        while names:
            child = os.open(names.pop(), LOOK | os.O_NOFOLLOW, dir_fd=folder)
            if not stat.S_ISLNK(os.fstat(child).st_mode):
                os.close(folder)
                folder = child
                continue
            try:
                target = PurePosixPath(os.readlink("", dir_fd=child))
            finally:
                os.close(child)
            links += 1
            if links > _MOST_LINKS:
                return False
            if not _is_trusted(folder) and (target.is_absolute() or ".." in target.parts):
                return None
            if target.is_absolute():
                os.close(folder)
                folder = os.open("/", LOOK | os.O_DIRECTORY)
            names += reversed([name for name in target.parts if name != "/"])
        mode = os.fstat(folder).st_mode
    except OSError:
        return False
    finally:
        os.close(folder)
    return stat.S_ISREG(mode) and bool(mode & 0o111)


def _is_trusted(folder: int) -> bool:
    """Whether only root and the caller may write to the open folder."""
    status = os.fstat(folder)
    return status.st_uid in {0, os.geteuid()} and not status.st_mode & 0o022
