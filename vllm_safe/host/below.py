"""Looking for what is in folders of user vllm, who may plant links there: none that leads elsewhere is followed.

Not even to look: a link may lead into a network mount that hangs, and a look then takes for ever.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

LOOK = os.O_PATH | os.O_CLOEXEC  # a descriptor of what is there, without opening it: no device or pipe is touched
_MOST_LINKS = 40  # on one path, as the kernel allows (path_resolution(7))


def open_below(top: int, names: Iterable[str]) -> int:
    """A descriptor, the caller's to close, of a folder some levels below `top`. OSError if it is not there; ELOOP if a link is."""
    here = os.dup(top)
    for name in names:
        try:
            below = os.open(name, LOOK | os.O_NOFOLLOW, dir_fd=here)
        finally:
            os.close(here)
        here = below
        mode = os.fstat(here).st_mode
        if not stat.S_ISDIR(mode):
            os.close(here)
            code = errno.ELOOP if stat.S_ISLNK(mode) else errno.ENOTDIR
            raise OSError(code, os.strerror(code), name)
    return here


def find_program(path: Path) -> bool | None:
    """Whether an executable file is at the absolute `path`; None if a link that was not followed leads there.

    Links of root (or of the caller) are followed. In a folder that others may write, only a link to something below that folder is.
    """
    if not path.is_absolute():
        return False
    here = os.open("/", LOOK | os.O_DIRECTORY)
    names, links = list(reversed(path.parts[1:])), 0
    try:
        while names:
            below = os.open(names.pop(), LOOK | os.O_NOFOLLOW, dir_fd=here)
            if not stat.S_ISLNK(os.fstat(below).st_mode):
                os.close(here)
                here = below
                continue
            try:
                target = PurePosixPath(os.readlink("", dir_fd=below))
            finally:
                os.close(below)
            links += 1
            if links > _MOST_LINKS:
                return False
            if not _is_ours(here) and (target.is_absolute() or ".." in target.parts):
                return None
            if target.is_absolute():
                os.close(here)
                here = os.open("/", LOOK | os.O_DIRECTORY)
            names += reversed([name for name in target.parts if name != "/"])
        mode = os.fstat(here).st_mode
    except OSError:
        return False
    finally:
        os.close(here)
    return stat.S_ISREG(mode) and bool(mode & 0o111)


def _is_ours(folder: int) -> bool:
    """Whether nobody but root and the caller can have put anything into the open folder."""
    status = os.fstat(folder)
    return status.st_uid in {0, os.geteuid()} and not status.st_mode & 0o022
