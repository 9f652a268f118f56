"""The note that tells a stop what it is for."""

from __future__ import annotations

import os
import time
from pathlib import Path

from vllm_safe.contract.room_note import read_room_note


def test_it_names_the_model_that_needs_the_room(tmp_path: Path) -> None:
    note = tmp_path / "one.room"
    note.write_text("two\n")
    assert read_room_note(note) == "two"


def test_without_one_the_stop_has_another_reason(tmp_path: Path) -> None:
    assert read_room_note(tmp_path / "one.room") == ""


def test_one_that_was_left_behind_says_nothing_of_a_later_stop(tmp_path: Path) -> None:
    note = tmp_path / "one.room"
    note.write_text("two\n")
    os.utime(note, (0, time.time() - 3600))
    assert read_room_note(note) == ""


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("secret")
    (tmp_path / "one.room").symlink_to("key")
    assert read_room_note(tmp_path / "one.room") == ""
