"""Steps on the package's own files. A file is written completely or not at all, and only in a folder that no other user may write."""

from __future__ import annotations

import grp
import os
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from vllm_safe.common.errors import Failure
from vllm_safe.common.libc import rename_new
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
        try:
            gid = -1 if self.group is None else _gid(self.group)
            write_in_folder(folder, self.path.name, self.content.encode("utf-8", "surrogateescape"), mode=self.mode, gid=gid)
        except OSError as error:
            raise Failure(f"cannot write {self.path}: {error.strerror}", hint=f"See: df {self.path.parent}") from error
        finally:
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


def write_in_folder(  # noqa: PLR0913 - a file has all of these
    folder: int, name: str, content: bytes, *, mode: int = 0o600, gid: int = -1, replace: bool = True
) -> None:
    """Put `content` at `name` in an open folder, all of it or nothing, also after a power cut. A link is replaced, not followed.

    gid: -1 for the group that a new file has. FileExistsError where something has the name, unless it is to `replace` that.
    """
    # 0600 until it is whole and has its owner: the mode is never wider than asked for, not even for a moment.
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    temporary = f".{name[:200]}.{os.urandom(4).hex()}"
    try:
        with os.fdopen(os.open(temporary, flags, 0o600, dir_fd=folder), "wb") as file:
            file.write(content)
            if gid != -1:
                os.fchown(file.fileno(), -1, gid)
            os.fchmod(file.fileno(), mode)
            file.flush()
            os.fsync(file.fileno())
        if replace:
            os.replace(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
        else:
            rename_new(folder, temporary, name)
        os.fsync(folder)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=folder)


def _gid(group: str) -> int:
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise Failure(f"group {group} does not exist", hint="Make it: systemd-sysusers /usr/lib/sysusers.d/vllm-safe.conf") from None
