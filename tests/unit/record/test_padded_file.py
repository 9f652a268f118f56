"""Files that grow by chunks of newlines: what is on the disk after each write, and after the end."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vllm_safe.record.padded_file import PaddedFile


def test_it_grows_by_whole_chunks_and_ends_with_its_content(tmp_path: Path) -> None:
    path = tmp_path / "x"
    file = PaddedFile(str(path), 8)
    file.write(b"one\n", 0)
    assert path.read_bytes() == b"one\n\n\n\n\n"
    file.write(b"twotwo\n", file.used)
    assert path.read_bytes() == b"one\ntwotwo\n" + b"\n" * 5
    file.close()
    assert path.read_bytes() == b"one\ntwotwo\n"


def test_newlines_replace_what_a_shorter_content_leaves(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"a long text of before\n")
    file = PaddedFile(str(path), 8)
    file.write(b"short\n", 0)
    assert path.read_bytes() == b"short\n".ljust(22, b"\n")
    file.close()
    assert path.read_bytes() == b"short\n"


@pytest.mark.parametrize(("before", "end"), [(b"", 0), (b"\n\n", 0), (b"one\n\n\n", 4), (b"one\nto", 7)])
def test_the_content_ends_with_its_last_line(tmp_path: Path, before: bytes, end: int) -> None:
    path = tmp_path / "x"
    path.write_bytes(before)
    file = PaddedFile(str(path), 8)
    file.find_end()
    assert file.used == end
    file.write(b"next\n", file.used)
    file.close()
    assert path.read_bytes().split() == [*before.split(), b"next"]


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "x").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        PaddedFile(str(tmp_path / "x"), 8)


def test_a_file_that_cannot_be_truncated_is_closed_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = PaddedFile(str(tmp_path / "x"), 8)

    def refuse(*_: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "ftruncate", refuse)
    with pytest.raises(OSError, match="Input/output"):
        file.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(file._handle)
