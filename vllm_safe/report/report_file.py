"""Writing of a file for a person: atomically, readable only by its owner, and replacing nothing but an earlier report."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

from vllm_safe.common.errors import Failure
from vllm_safe.common.file_steps import write_in_folder
from vllm_safe.report.html_report import MARK


def write_report(path: Path, page: str, *, force: bool = False) -> None:
    """Write the page to `path` with mode 0600.

    Raises Failure if another file exists there, unless `force`. A symbolic link is replaced, never followed.
    """
    refusal = Failure(f"{path} exists and is not a report of vllm-safe", hint="Choose another file with -o, or overwrite it with --force.")
    _write(path, page, lambda folder: force or _is_report(folder, path.name), refusal)


def write_new_file(path: Path, text: str) -> None:
    """Write a text to `path` with mode 0600. Raises Failure if anything exists there, were it a link to nowhere."""
    _write(path, text, lambda _: False, Failure(f"{path} exists", hint="Choose another file with -o."))


def _write(path: Path, text: str, may_replace: Callable[[int], bool], refusal: Failure) -> None:
    """Write a file; `refusal` is raised if one exists that it may not replace. may_replace is asked with the open folder."""
    try:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise Failure(f"cannot write {path}: {path.parent}: {(error.strerror or str(error)).lower()}") from error
    try:
        write_in_folder(folder, path.name, text.encode(errors="replace"), replace=may_replace(folder))
    except FileExistsError:
        raise refusal from None
    except OSError as error:
        raise Failure(f"cannot write {path}: {(error.strerror or str(error)).lower()}") from error
    finally:
        os.close(folder)


def _is_report(folder: int, name: str) -> bool:
    """Decide whether an earlier report exists there, without waiting for a pipe or a device and without following a link."""
    try:
        handle = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    except OSError:
        return False
    with os.fdopen(handle, "rb") as file:
        return stat.S_ISREG(os.fstat(handle).st_mode) and MARK.encode() in file.read(200)
