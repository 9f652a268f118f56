"""The GPU usage that the recorder writes, as the main process reads it."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from vllm_safe.contract import state_file
from vllm_safe.contract.state_file import NO_CARDS, CardUsage, cards_from_line, cards_to_line, read_card_usage


@pytest.mark.parametrize("cards", [NO_CARDS, CardUsage(5 << 30), CardUsage(5 << 30, 0.97), CardUsage(1, 1.0), CardUsage(1, 0.0)])
def test_what_is_written_is_what_is_read(cards: CardUsage) -> None:
    assert cards_from_line(cards_to_line(cards)) == cards


def test_an_older_and_a_newer_recorder_are_understood() -> None:
    assert cards_from_line("5368709120\n") == CardUsage(5 << 30)
    assert cards_from_line("5368709120 0.97 61 more\n") == CardUsage(5 << 30, 0.97)


@pytest.mark.parametrize("line", ["", "\n", "much", "5 busy"])
def test_anything_else_is_an_error(line: str) -> None:
    with pytest.raises(ValueError, match=r"invalid literal|could not convert"):
        cards_from_line(line)


def test_the_memory_is_what_was_heard_last_and_how_busy_they_are_is_of_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_file, "GPU_FOLDER", tmp_path)
    assert read_card_usage("demo", NO_CARDS) == NO_CARDS
    (tmp_path / "demo").write_text("5368709120 1.00\n")
    assert read_card_usage("demo", NO_CARDS) == CardUsage(5 << 30, 1.0)
    old = time.time() - state_file.FRESH - 1  # the recorder has been killed
    os.utime(tmp_path / "demo", (old, old))
    assert read_card_usage("demo", NO_CARDS) == CardUsage(5 << 30, None)
    (tmp_path / "demo").write_text("torn")
    assert read_card_usage("demo", CardUsage(7, 1.0)) == CardUsage(7, None)
