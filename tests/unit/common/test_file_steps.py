"""Files are written completely, with the requested mode, and only in folders that no other user may write."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from vllm_safe.common.errors import Failure
from vllm_safe.common.file_steps import RemoveFile, WriteFile


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    mine = tmp_path / "ours"
    mine.mkdir(mode=0o755)
    return mine


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_has_its_content_and_mode_whatever_the_umask(folder: Path) -> None:
    old = os.umask(0o077)
    try:
        WriteFile(folder / "f", "text\n", mode=0o644).run()
    finally:
        os.umask(old)
    assert (folder / "f").read_text() == "text\n"
    assert mode_of(folder / "f") == 0o644
    assert names_in(folder) == ["f"]


def test_a_key_is_nobody_elses_and_is_not_printed(folder: Path) -> None:
    step = WriteFile(folder / "key", "sesame", mode=0o600)
    step.run()
    assert mode_of(folder / "key") == 0o600
    assert "sesame" not in step.describe() + repr(step)


def test_writing_replaces_a_link_and_spares_what_it_points_at(folder: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (folder / "f").symlink_to(victim)
    WriteFile(folder / "f", "new").run()
    assert victim.read_text() == "precious"
    assert not (folder / "f").is_symlink()


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o1777])
def test_a_folder_that_others_may_write_is_refused(folder: Path, mode: int) -> None:
    folder.chmod(mode)
    with pytest.raises(Failure, match="others could change") as caught:
        WriteFile(folder / "f", "text").run()
    assert str(folder) in caught.value.hint
    assert names_in(folder) == []


def test_a_folder_above_that_others_may_write_is_refused(folder: Path) -> None:
    (folder / "inner").mkdir()
    folder.chmod(0o777)
    with pytest.raises(Failure, match="others could change"):
        WriteFile(folder / "inner" / "f", "text").run()


def test_a_missing_folder_is_named(folder: Path) -> None:
    with pytest.raises(Failure, match="none") as caught:
        WriteFile(folder / "none" / "f", "text").run()
    assert caught.value.hint


def test_an_unknown_group_is_named_and_nothing_is_left(folder: Path) -> None:
    with pytest.raises(Failure, match="no-such-group does not exist"):
        WriteFile(folder / "f", "text", group="no-such-group").run()
    assert names_in(folder) == []


def test_what_is_in_the_way_is_a_failure_and_nothing_is_left(folder: Path) -> None:
    (folder / "f").mkdir()
    with pytest.raises(Failure, match="cannot write"):
        WriteFile(folder / "f", "text").run()
    assert names_in(folder) == ["f"]


def test_removing_takes_the_link_and_not_its_target(folder: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (folder / "f").symlink_to(victim)
    RemoveFile(folder / "f").run()
    RemoveFile(folder / "f").run()
    assert victim.exists()
    assert names_in(folder) == []


def test_removing_a_folder_is_a_failure(folder: Path) -> None:
    with pytest.raises(Failure, match="cannot remove"):
        RemoveFile(folder).run()
