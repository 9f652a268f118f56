"""Writing of a report file: atomically, readable only by its owner, and replacing nothing but an earlier report."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

from vllm_safe.common.errors import Failure
from vllm_safe.common.libc import rename_new
from vllm_safe.report.html_report import MARK

_EXCLUSIVE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def write_report(path: Path, page: str, *, force: bool = False) -> None:
    """Write the page to `path` with mode 0600.

    Raises Failure if another file exists there, unless `force`. A symbolic link is replaced, never followed.
    """
    try:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise Failure(f"cannot write {path}: {path.parent}: {(error.strerror or str(error)).lower()}") from error
    temporary = f".{path.name[:200]}.{os.urandom(4).hex()}"
    try:
        with os.fdopen(os.open(temporary, _EXCLUSIVE, 0o600, dir_fd=folder), "w", encoding="utf-8") as file:
            file.write(page)
            file.flush()
            os.fsync(file.fileno())
        if force or _is_report(folder, path.name):
            os.replace(temporary, path.name, src_dir_fd=folder, dst_dir_fd=folder)
        else:
            rename_new(folder, temporary, path.name)
    except FileExistsError:
        raise Failure(
            f"{path} exists and is not a report of vllm-safe", hint="Choose another file with -o, or overwrite it with --force."
        ) from None
    except OSError as error:
        raise Failure(f"cannot write {path}: {(error.strerror or str(error)).lower()}") from error
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=folder)
        os.close(folder)


def _is_report(folder: int, name: str) -> bool:
    """Decide whether an earlier report exists there, without waiting for a pipe or a device and without following a link."""
    try:
        handle = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    except OSError:
        return False
    with os.fdopen(handle, "rb") as file:
        return stat.S_ISREG(os.fstat(handle).st_mode) and MARK.encode() in file.read(200)
