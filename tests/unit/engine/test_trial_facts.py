"""Tests of which engines are untried: the marks, and the recorded runs that supersede them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.builders.runs import BEGUN, PHASES, make_run, write_run
from vllm_safe.engine.engine_facts import read_engine

FOLDER = "vllm-0.32.0"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Make an engine in use that was marked as untried a minute before BEGUN."""
    server = tmp_path / "engine" / FOLDER / "bin/vllm"
    server.parent.mkdir(parents=True)
    server.touch(mode=0o755)
    (tmp_path / "engine/current").symlink_to(FOLDER)
    (tmp_path / "untried").write_text(json.dumps({FOLDER: BEGUN - 60}))
    (tmp_path / "runs").mkdir()
    return tmp_path


def is_untried(place: Path) -> bool:
    return read_engine(place / "engine", place / "untried", place / "runs").is_untried


def test_a_marked_engine_is_untried_until_a_model_was_ready_with_it(place: Path) -> None:
    assert is_untried(place)
    write_run(make_run(phases=PHASES[:-1], end={"cause": "failed"}), place / "runs")
    assert is_untried(place)
    write_run(make_run(run="20261123T222050-1a2b3c4e"), place / "runs")
    assert not is_untried(place)


@pytest.mark.parametrize(
    "start",
    [
        {"versions": {"engine": "vllm-0.31.0"}},
        {"versions": {}},
        {"command": True},
        {"time": BEGUN - 61},  # an earlier engine of the same name
    ],
)
def test_only_a_start_of_that_very_engine_is_its_trial(place: Path, start: dict[str, Any]) -> None:
    write_run(make_run(start=start), place / "runs")
    assert is_untried(place)


@pytest.mark.parametrize("content", ["", "{", "[]", '"vllm-0.32.0"', '{"vllm-0.32.0": "soon"}', '{"vllm-0.31.0": 1.0}', "{}"])
def test_a_file_that_says_nothing_of_it(place: Path, content: str) -> None:
    (place / "untried").write_text(content)
    assert not is_untried(place)


def test_without_a_mark_an_engine_was_tried(place: Path) -> None:
    (place / "untried").unlink()
    assert not is_untried(place)


def test_marks_of_engines_that_are_gone_or_were_tried_no_longer_count(place: Path) -> None:
    marks = {FOLDER: BEGUN - 60, "vllm-0.31.0": BEGUN - 120, "vllm-0.32.0-2": BEGUN + 60}
    (place / "untried").write_text(json.dumps(marks))
    (place / "engine/vllm-0.32.0-2").mkdir()
    write_run(make_run(), place / "runs")
    facts = read_engine(place / "engine", place / "untried", place / "runs")
    assert facts.marks == marks
    assert facts.marks_now == {"vllm-0.32.0-2": BEGUN + 60}


def test_what_somebody_put_among_the_runs_is_neither_followed_nor_minded(place: Path) -> None:
    run = write_run(make_run(), place / "runs")
    (place / "runs/other").mkdir()
    (place / "runs/other/file").touch()
    (run / "start.json").rename(place / "start.json")
    (run / "start.json").symlink_to(place / "start.json")
    assert is_untried(place)
