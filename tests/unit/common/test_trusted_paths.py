"""Folders that root may trust, and folders that it may not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vllm_safe.common.errors import Failure
from vllm_safe.common.trusted_paths import open_trusted_folder


def is_trusted(path: Path) -> bool:
    try:
        os.close(open_trusted_folder(path))
    except Failure as failure:
        return not failure.hint  # a refusal must have a hint: without one it counts as trusted, and the test fails
    return True


def test_our_own_folder_in_a_sticky_one_is_trusted(tmp_path: Path) -> None:
    sticky = tmp_path / "tmp"
    (sticky / "ours").mkdir(parents=True)
    sticky.chmod(0o1777)
    assert is_trusted(sticky / "ours")
    assert not is_trusted(sticky)  # a file opened in it by name may belong to another user


def test_the_root_is_trusted() -> None:
    assert is_trusted(Path("/"))


def test_a_link_by_root_is_followed_to_where_it_leads(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert is_trusted(tmp_path / "link")
    (tmp_path / "real").chmod(0o777)
    assert not is_trusted(tmp_path / "link")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_somebody_else_is_not_trusted(tmp_path: Path) -> None:
    (tmp_path / "theirs" / "ours").mkdir(parents=True)
    os.chown(tmp_path / "theirs", 65534, 65534)
    assert not is_trusted(tmp_path / "theirs")
    assert not is_trusted(tmp_path / "theirs" / "ours")


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert not is_trusted(tmp_path / "file")
    assert not is_trusted(tmp_path / "none")
