"""The power limits that the driver reports, and the file of those from before a change."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.builders.fake_nvml import RTX, build_fake_nvml, tell_cards, uuid_of
from vllm_safe.driver.driver_facts import Nvml
from vllm_safe.power.power_facts import PowerCard, PowerNote, PowerReading, SavedLimit, power_reading, read_power, read_power_note


def test_what_the_driver_says_of_each_card_that_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", str(build_fake_nvml(tmp_path)))
    monkeypatch.setenv("FAKE_NVML", str(tmp_path / "told"))
    tell_cards(tmp_path / "told", "power 127.5 170 100 200\npersistence 1", "lost 1", "power none\npersistence none")
    assert read_power() == PowerReading(
        (
            PowerCard(0, uuid_of(0), "0000:01:00.0", RTX, 127500, 170000, 100000, 200000, persistent=True),
            PowerCard(2, uuid_of(2), "0000:03:00.0", RTX),
        )
    )


@pytest.mark.parametrize(
    ("seen", "words"),
    [(Nvml(hung=True), "did not answer in time"), (Nvml(), "is not installed"), (Nvml(9), "does not answer (NVML error 9)")],
)
def test_a_driver_that_does_not_answer_is_a_problem_with_a_way_out(seen: Nvml, words: str) -> None:
    reading = power_reading(seen)
    assert words in reading.problem
    assert reading.hint
    assert reading.cards == ()


def test_the_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    note = PowerNote("75%", {"GPU-a": SavedLimit(170000, persistent=False)})
    (tmp_path / "power").write_text(note.to_json())
    assert read_power_note(tmp_path / "power") == note
    assert read_power_note(tmp_path / "none") is None


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"asked": "75%", "before": {"GPU-a": 1}}', '{"asked": "75%", "before": {"a": ["x", 0]}}']
)
def test_a_file_that_is_damaged_is_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "power").write_text(text)
    assert read_power_note(tmp_path / "power") is None
