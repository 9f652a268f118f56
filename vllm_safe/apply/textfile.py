"""Write access of the recorder, which is not root, to the folder of Prometheus's textfile collector: an ACL, as made by setfacl(1)."""

from __future__ import annotations

import os
import pwd
import struct
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from vllm_safe.common import paths
from vllm_safe.common.steps import Step

# The format of linux/posix_acl_xattr.h: a version, then entries ordered by tag and id.
_XATTR, _VERSION = "system.posix_acl_access", 2
_HEAD, _ENTRY = struct.Struct("<I"), struct.Struct("<HHI")
_OWNER, _USER, _GROUP_OF, _MASK, _OTHER = 0x01, 0x02, 0x04, 0x10, 0x20
_NOBODY = 0xFFFFFFFF  # the id of an entry without one
_ALL = 0o7

Entries = dict[tuple[int, int], int]  # (tag, id) -> permissions


@dataclass(frozen=True)
class GrantFolder:
    """Let a user write into a folder. An error is left to the recorder to report: metrics must not prevent a start."""

    folder: Path
    user: int

    def describe(self) -> str:
        """Return the step as one line of text."""
        return f"let user {paths.RECORDER} write into {self.folder}"

    def run(self) -> None:
        """Set the ACL. Raises nothing."""
        with suppress(OSError):
            handle = _open(self.folder)
            try:
                entries = _read(handle)
                permissions = entries.get((_MASK, _NOBODY), entries[_GROUP_OF, _NOBODY])
                _write(handle, {**entries, (_USER, self.user): _ALL, (_MASK, _NOBODY): permissions | _ALL})
            finally:
                os.close(handle)


def textfile_steps(folder: str) -> tuple[Step, ...]:
    """Return the step that lets the recorder write into `folder` ("" for none), if it cannot yet."""
    if not folder:
        return ()
    try:
        user = pwd.getpwnam(paths.RECORDER).pw_uid
        handle = _open(Path(folder))
    except (KeyError, OSError):  # the recorder reports errors of the folder
        return ()
    try:
        entries = _read(handle)
        may = os.fstat(handle).st_uid == user or (entries.get((_USER, user)) == entries.get((_MASK, _NOBODY)) == _ALL)
    except OSError:
        return ()
    finally:
        os.close(handle)
    return () if may else (GrantFolder(Path(folder), user),)


def _open(folder: Path) -> int:
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)


def _read(folder: int) -> Entries:
    """Return the ACL of an open folder, made from its mode if it has none."""
    try:
        content = os.getxattr(folder, _XATTR)
    except OSError:
        mode = os.fstat(folder).st_mode
        return {(_OWNER, _NOBODY): mode >> 6 & 7, (_GROUP_OF, _NOBODY): mode >> 3 & 7, (_OTHER, _NOBODY): mode & 7}
    return {(tag, of): permissions for tag, permissions, of in _ENTRY.iter_unpack(content[_HEAD.size :])}


def _write(folder: int, entries: Entries) -> None:
    rows = (_ENTRY.pack(tag, permissions, of) for (tag, of), permissions in sorted(entries.items()))
    os.setxattr(folder, _XATTR, _HEAD.pack(_VERSION) + b"".join(rows))
