"""Access to folders that root may trust: no other user can replace any part of their path."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from vllm_safe.common.errors import Failure

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def open_trusted_folder(path: Path) -> int:
    """Open the folder `path` and return its descriptor, which the caller closes.

    Links in the path are resolved once. Then each folder on the path must belong to root (or to the caller), and must not be writable
    by others, who could put something else in its place. Raises Failure, which names the folder at fault.
    """
    parts = Path(os.path.realpath(path)).parts
    parent = os.open(parts[0], _FOLDER)
    walked = Path(parts[0])
    try:
        _check(parent, walked, is_last=len(parts) == 1)
        for number, part in enumerate(parts[1:], start=2):
            walked /= part
            try:
                child = os.open(part, _FOLDER, dir_fd=parent)
            except OSError as error:
                message = f"{walked}: {(error.strerror or str(error)).lower()}"
                raise Failure(message, hint=f"{path} can only be used if this folder exists and belongs to root.") from error
            os.close(parent)
            parent = child
            _check(parent, walked, is_last=number == len(parts))
    except BaseException:
        os.close(parent)
        raise
    return parent


def _check(descriptor: int, path: Path, *, is_last: bool) -> None:
    status = os.fstat(descriptor)
    # In a sticky folder such as /tmp, other users cannot replace a file of root, but a file opened there by name may be theirs.
    shared = status.st_mode & 0o022 and (is_last or not status.st_mode & stat.S_ISVTX)
    if shared or status.st_uid not in {0, os.geteuid()}:
        message = f"{path} is owned by uid {status.st_uid}, mode {stat.S_IMODE(status.st_mode):04o}: others could change its contents"
        raise Failure(message, hint=f"Make root its owner: chown root:root {path}; chmod go-w {path}")
