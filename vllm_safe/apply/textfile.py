"""Letting the recorder, which is not root, write into the folder of Prometheus's textfile collector: by an ACL, as setfacl(1) makes one."""

from __future__ import annotations

import os
import pwd
import struct
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from vllm_safe import paths
from vllm_safe.apply.steps import Step

# linux/posix_acl_xattr.h: a version, then entries in the order of their tags and ids.
_XATTR, _VERSION = "system.posix_acl_access", 2
_HEAD, _ENTRY = struct.Struct("<I"), struct.Struct("<HHI")
_OWNER, _USER, _GROUP_OF, _MASK, _OTHER = 0x01, 0x02, 0x04, 0x10, 0x20
_NOBODY = 0xFFFFFFFF  # the id of an entry that has none
_ALL = 0o7

Entries = dict[tuple[int, int], int]  # (tag, id) -> permissions


@dataclass(frozen=True)
class GrantFolder:
    """Let a user write into a folder. Where that cannot be done the recorder says so: figures are worth no start."""

    folder: Path
    user: int

    def describe(self) -> str:
        """The step in one line."""
        return f"let user {paths.RECORDER} write into {self.folder}"

    def run(self) -> None:
        """Nothing is raised."""
        with suppress(OSError):
            handle = _open(self.folder)
            try:
                entries = _read(handle)
                permissions = entries.get((_MASK, _NOBODY), entries[_GROUP_OF, _NOBODY])
                _write(handle, {**entries, (_USER, self.user): _ALL, (_MASK, _NOBODY): permissions | _ALL})
            finally:
                os.close(handle)


def textfile_steps(folder: str) -> tuple[Step, ...]:
    """The step that lets the recorder write into `folder` ("" for none), if it may not yet."""
    if not folder:
        return ()
    try:
        user = pwd.getpwnam(paths.RECORDER).pw_uid
        handle = _open(Path(folder))
    except (KeyError, OSError):  # the recorder says what is wrong with the folder
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
    """The ACL of an open folder; its mode says the same where it has none."""
    try:
        content = os.getxattr(folder, _XATTR)
    except OSError:
        mode = os.fstat(folder).st_mode
        return {(_OWNER, _NOBODY): mode >> 6 & 7, (_GROUP_OF, _NOBODY): mode >> 3 & 7, (_OTHER, _NOBODY): mode & 7}
    return {(tag, of): permissions for tag, permissions, of in _ENTRY.iter_unpack(content[_HEAD.size :])}


def _write(folder: int, entries: Entries) -> None:
    rows = (_ENTRY.pack(tag, permissions, of) for (tag, of), permissions in sorted(entries.items()))
    os.setxattr(folder, _XATTR, _HEAD.pack(_VERSION) + b"".join(rows))
