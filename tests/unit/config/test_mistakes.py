"""Bad configurations and their exact error messages. The cases are in mistakes.txt.

After a change of messages: python -m tests.unit.config.test_mistakes writes the messages of today into mistakes.txt; read the difference.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import pytest

from vllm_safe.common.errors import EXIT_MISUSE, ConfigError
from vllm_safe.config.reader import load

FILE = Path(__file__).with_name("mistakes.txt")
CASE = re.compile(r"^=== (.*)\n((?s:.*?))^--->\n(.+(?:\n.+)*)", re.MULTILINE)
CASES = {name: (text, messages.strip().split("\n")) for name, text, messages in CASE.findall(FILE.read_text(encoding="utf-8"))}

# Cases that would not be legible in mistakes.txt.
CASES |= {
    "size beyond everything": (
        "swap:\n  size: 1" + "0" * 400 + "\n",
        [f"2:9: swap.size cannot be '1{'0' * 56}...'; expected a size from 1M to 1024T, such as 128G, or none"],
    ),
    "five thousand digits": (
        "limits:\n  cpu_weight: " + "9" * 5000 + "\n",
        [f"2:15: limits.cpu_weight cannot be '{'9' * 57}...'; expected a whole number from 1 to 10000"],
    ),
    "two documents": ("swap: {}\n---\nlimits: {}\n", ["2:1: a second document begins here (---); expected one document"]),
    "deep": ("a: " + "[" * 100 + "\n", ["1:34: lists or sections nested more than 32 deep; expected two or three levels"]),
    "control character": ("swap: {}\n# \x07\n", ["2:3: the character '\\x07' is not allowed in YAML text"]),
}


def mistakes_in(text: str, folder: Path) -> ConfigError:
    file = folder / "config.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(file)
    assert caught.value.exit_code == EXIT_MISUSE
    return caught.value


def messages_for(text: str, folder: Path) -> list[str]:
    return [line.removeprefix(f"{folder}/config.yaml:").lstrip() for line in str(mistakes_in(text, folder)).split("\n")]


def places_in(text: str, folder: Path) -> list[tuple[int, int]]:
    return [(mistake.line, mistake.column) for mistake in mistakes_in(text, folder).mistakes]


@pytest.mark.parametrize("case", CASES)
def test_mistakes_are_named_with_their_place(case: str, tmp_path: Path) -> None:
    text, expected = CASES[case]
    assert messages_for(text, tmp_path) == expected


def test_the_cases_are_all_found() -> None:
    assert len(CASES) > 100


def test_all_mistakes_of_a_file_are_said_at_once(tmp_path: Path) -> None:
    text = "swap:\n  size: 128\nlimits:\n  cpu_weight: low\n  cpu_weight: 1\nmodels:\n  a: {model: x}\n  b: {port: 0}\n"
    assert places_in(text, tmp_path) == [(2, 9), (4, 15), (5, 3), (7, 14), (8, 3), (8, 13)]


def test_a_bad_value_is_not_held_against_another(tmp_path: Path) -> None:
    text = "models:\n  a: {model: a/b, port: x}\n  b: {model: a/b}\n  c: {model: nonsense, port: 8002}\n"
    assert places_in(text, tmp_path) == [(2, 25), (4, 14)]


def test_a_bad_value_does_not_hide_a_clash_of_others(tmp_path: Path) -> None:
    text = "models:\n  a: {model: a/b, port: x}\n  b: {model: a/b}\n  c: {model: a/b}\n"
    assert places_in(text, tmp_path) == [(2, 25), (4, 3)]


def test_thousands_of_mistakes_are_a_screenful(tmp_path: Path) -> None:
    error = mistakes_in("".join(f"unknown{number}: 1\n" for number in range(500)), tmp_path)
    assert len(error.mistakes) == 500
    assert str(error).count("\n") == 40
    assert str(error).endswith("... and 460 more")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        FILE.write_text(
            CASE.sub(
                lambda case: f"=== {case[1]}\n{case[2]}--->\n" + "\n".join(messages_for(case[2], Path(folder))),
                FILE.read_text(encoding="utf-8"),
            ),
            encoding="utf-8",
        )
