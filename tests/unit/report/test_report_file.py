"""Tests of writing a report, and of what it does not overwrite."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from vllm_safe.common.errors import Failure
from vllm_safe.report.html_report import MARK
from vllm_safe.report.report_file import write_report

PAGE = f"<!doctype html>\n{MARK}\nnew"


def test_it_is_whole_and_its_owners(tmp_path: Path) -> None:
    write_report(tmp_path / "x.html", PAGE)
    assert (tmp_path / "x.html").read_text() == PAGE
    assert stat.S_IMODE((tmp_path / "x.html").stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["x.html"]


def test_an_earlier_report_is_replaced(tmp_path: Path) -> None:
    write_report(tmp_path / "x.html", PAGE.replace("new", "old"))
    write_report(tmp_path / "x.html", PAGE)
    assert (tmp_path / "x.html").read_text() == PAGE


def test_anything_else_is_not_unless_asked_for(tmp_path: Path) -> None:
    (tmp_path / "x.html").write_text("mine")
    with pytest.raises(Failure, match="not a report"):
        write_report(tmp_path / "x.html", PAGE)
    assert (tmp_path / "x.html").read_text() == "mine"
    write_report(tmp_path / "x.html", PAGE, force=True)
    assert (tmp_path / "x.html").read_text() == PAGE
    assert [path.name for path in tmp_path.iterdir()] == ["x.html"]


@pytest.mark.parametrize("force", [False, True])
def test_a_link_is_not_followed(tmp_path: Path, *, force: bool) -> None:
    (tmp_path / "theirs").write_text(PAGE)
    (tmp_path / "x.html").symlink_to("theirs")
    if force:
        write_report(tmp_path / "x.html", "new", force=True)
        assert not (tmp_path / "x.html").is_symlink()
    else:
        with pytest.raises(Failure):
            write_report(tmp_path / "x.html", "new")
    assert (tmp_path / "theirs").read_text() == PAGE


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.html")
    with pytest.raises(Failure):
        write_report(tmp_path / "x.html", PAGE)


def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="nowhere"):
        write_report(tmp_path / "nowhere/x.html", PAGE)
