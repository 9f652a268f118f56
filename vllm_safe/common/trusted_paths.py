"""Opening what root may trust: paths on which no other user could have swapped anything."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from vllm_safe.common.errors import Failure

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def open_trusted_folder(path: Path) -> int:
    """A descriptor of the folder `path`, the caller's to close.

    Links in the path are followed once; then each folder down to it must belong to root (or to the caller), and none may be
    writable by others, who could put something else in its place. Failure says which folder is at fault.
    """
    parts = Path(os.path.realpath(path)).parts
    here = os.open(parts[0], _FOLDER)
    walked = Path(parts[0])
    try:
        _check(here, walked, is_last=len(parts) == 1)
        for number, part in enumerate(parts[1:], start=2):
            walked /= part
            try:
                below = os.open(part, _FOLDER, dir_fd=here)
            except OSError as error:
                message = f"{walked}: {(error.strerror or str(error)).lower()}"
                raise Failure(message, hint=f"This folder must be there, and root's own, for {path} to be used.") from error
            os.close(here)
            here = below
            _check(here, walked, is_last=number == len(parts))
    except BaseException:
        os.close(here)
        raise
    return here


def _check(descriptor: int, path: Path, *, is_last: bool) -> None:
    status = os.fstat(descriptor)
    # In a sticky folder such as /tmp others cannot replace what is ours; but what we open there by name may be theirs.
    shared = status.st_mode & 0o022 and (is_last or not status.st_mode & stat.S_ISVTX)
    if shared or status.st_uid not in {0, os.geteuid()}:
        message = f"{path} is owned by uid {status.st_uid}, mode {stat.S_IMODE(status.st_mode):04o}: others could change what is in it"
        raise Failure(message, hint=f"Make it root's: chown root:root {path}; chmod go-w {path}")
