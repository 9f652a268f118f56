"""Steps on the package's own files. A file is written completely or not at all, and only in a folder that no other user may write."""

from __future__ import annotations

import grp
import os
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from vllm_safe.common.errors import Failure
from vllm_safe.common.trusted_paths import open_trusted_folder


@dataclass(frozen=True)
class WriteFile:
    """Write `content` to `path`, replacing an existing file atomically. `content` is never printed, since it may be a key."""

    path: Path
    content: str = field(repr=False)
    mode: int = 0o644
    group: str | None = None  # None: group root

    def describe(self) -> str:
        """Describe the step in one line."""
        return f"write {self.path} (root:{self.group or 'root'} {self.mode:04o})"

    def run(self) -> None:
        """Write the file. Raises Failure if the folder is missing, not trusted or full."""
        folder = open_trusted_folder(self.path.parent)
        temporary = f".{self.path.name}.{os.urandom(4).hex()}"
        try:
            _write(folder, temporary, self)
            os.replace(temporary, self.path.name, src_dir_fd=folder, dst_dir_fd=folder)
            os.fsync(folder)
        except OSError as error:
            raise Failure(f"cannot write {self.path}: {error.strerror}", hint=f"See: df {self.path.parent}") from error
        finally:
            _remove(folder, temporary)
            os.close(folder)


@dataclass(frozen=True)
class RemoveFile:
    """Remove a file. A symbolic link is removed, not followed. A missing file is not an error."""

    path: Path

    def describe(self) -> str:
        """Describe the step in one line."""
        return f"remove {self.path}"

    def run(self) -> None:
        """Remove the file. Raises Failure if that is not possible."""
        try:
            self.path.unlink(missing_ok=True)
        except OSError as error:
            raise Failure(f"cannot remove {self.path}: {error.strerror}") from error


def _write(folder: int, name: str, step: WriteFile) -> None:
    # The mode is 0600 until the file is complete and has its group, so that it is never wider than requested, not even briefly.
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(name, flags, 0o600, dir_fd=folder), "wb") as file:
        file.write(step.content.encode("utf-8", "surrogateescape"))
        if step.group is not None:
            os.fchown(file.fileno(), -1, _gid(step.group))
        os.fchmod(file.fileno(), step.mode)
        file.flush()
        os.fsync(file.fileno())


def _gid(group: str) -> int:
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise Failure(f"group {group} does not exist", hint="Create it: systemd-sysusers /usr/lib/sysusers.d/vllm-safe.conf") from None


def _remove(folder: int, name: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(name, dir_fd=folder)
