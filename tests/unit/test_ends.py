"""Ends of real servers through the real path: the main process runs one that prints the text, the recorder records it, `why` explains it.

The expectations are in tests/cases/why/cases.json. The explanations are in tests/golden/ends/; to update them, run GOLDEN_UPDATE=1 pytest
tests/unit/test_ends.py, and read the difference.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

from tests.ends.judge import CASES, FOLDER, faults, read_by_people, take, with_one_voice
from vllm_safe.config.reader import load

GOLDEN = Path(__file__).parents[1] / "golden/ends"
_SECONDS = re.compile(r"(?:for|after) \d+ s\b")
BATCHES = 4  # one process runs many cases, since its imports take longer than a case
NAMES = list(CASES)


@pytest.fixture(params=range(BATCHES))
def said(request: pytest.FixtureRequest) -> dict[str, dict[str, Any]]:
    """Return the explanations of every fourth case."""
    return take(NAMES[request.param :: BATCHES])


def test_each_end_is_told_right(said: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    """Check that an explanation is as expected, the same everywhere and as the last time, and that its changes are valid in config.yaml."""
    wrong = {name: found for name, answer in said.items() if (found := faults(CASES[name], answer))}
    wrong |= {name: ["Status:, the journal and `why` differ"] for name, answer in said.items() if not with_one_voice(answer)}
    assert wrong == {}
    unlike = [name for name, answer in said.items() if not _is_golden(name, _golden(answer))]
    unloadable = [fault for answer in said.values() for fault in _unloadable(answer, tmp_path / "config.yaml")]
    assert (unlike, unloadable) == ([], [])


def test_each_text_is_a_case() -> None:
    """Check that every text has a case."""
    assert sorted(path.stem for path in FOLDER.glob("*.txt")) == sorted(CASES)
    assert sorted(path.stem for path in GOLDEN.glob("*.txt")) == sorted(CASES)


def _golden(answer: dict[str, Any]) -> str:
    lines = "\n".join(line for line in read_by_people(answer)[2:] if line)
    told = _SECONDS.sub("after N s", lines)
    return f"exit {answer['code']}\n{answer['why']['code']}\n{told}\n"


def _is_golden(name: str, text: str) -> bool:
    file = GOLDEN / f"{name}.txt"
    if "GOLDEN_UPDATE" in os.environ:
        file.write_text(text)
    return file.read_text() == text


def _unloadable(answer: dict[str, Any], file: Path) -> list[str]:
    found = []
    for change in answer["why"]["changes"]:
        *sections, key = change["path"].split(".")
        lines = [f"{'  ' * depth}{name}:" for depth, name in enumerate(sections)]
        lines.append(f"{'  ' * len(sections)}{key}: {change['new']}")
        file.write_text("\n".join([*lines, "    model: /srv/models/x" if sections[0] == "models" else ""]) + "\n")
        try:
            load(file)
        except Exception as error:  # noqa: BLE001 - any exception is a fault of the suggestion
            found.append(str(error))
    return found
