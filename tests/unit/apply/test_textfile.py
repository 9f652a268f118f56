"""The folder of the textfile collector, which the recorder may write into and which stays its owner's."""

from __future__ import annotations

import os
import pwd
import struct
from pathlib import Path
from types import SimpleNamespace

import pytest

from vllm_safe.apply.textfile import GrantFolder, textfile_steps

RECORDER = 4711


@pytest.fixture(autouse=True)
def _user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pwd, "getpwnam", lambda name: SimpleNamespace(pw_uid=RECORDER, pw_name=name))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "textfile"
    made.mkdir()
    made.chmod(0o755)
    return made


def entries(folder: Path) -> set[tuple[int, int, int]]:
    """(tag, permissions, id) of each, as acl_from_xattr() of the kernel gave them back."""
    return set(struct.iter_unpack("<HHI", os.getxattr(folder, "system.posix_acl_access")[4:]))


def test_the_recorder_may_write_and_everybody_else_as_before(folder: Path) -> None:
    (step,) = textfile_steps(str(folder))
    assert step.describe() == f"let user vllm-record write into {folder}"
    step.run()
    nobody = 0xFFFFFFFF
    assert entries(folder) == {(0x01, 7, nobody), (0x02, 7, RECORDER), (0x04, 5, nobody), (0x10, 7, nobody), (0x20, 5, nobody)}
    assert textfile_steps(str(folder)) == ()


def test_another_users_entry_stays(folder: Path) -> None:
    GrantFolder(folder, 1000).run()
    for step in textfile_steps(str(folder)):
        step.run()
    assert {(0x02, 7, 1000), (0x02, 7, RECORDER)} <= entries(folder)


def test_what_cannot_be_granted_is_no_reason_not_to_start(folder: Path) -> None:
    assert textfile_steps("") == ()
    assert textfile_steps(str(folder / "none")) == ()
    (folder / "link").symlink_to(folder)
    assert textfile_steps(str(folder / "link")) == ()
    GrantFolder(folder / "none", RECORDER).run()


def test_before_there_is_such_a_user_there_is_nothing_to_do(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(name: str) -> None:
        raise KeyError(name)

    monkeypatch.setattr(pwd, "getpwnam", unknown)
    assert textfile_steps(str(folder)) == ()
