"""README.md against the program: each command line in it exists, each command is in it, and its figures are those of the benchmark."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from vllm_safe.cli.entry import COMMANDS
from vllm_safe.cli.main import cli
from vllm_safe.config.reader import load

ROOT = Path(__file__).parents[2]
TEXT = "\n".join((ROOT / name).read_text() for name in ("README.md", "CONTRIBUTING.md"))
RESULTS = (ROOT / "tests/bench/RESULTS.md").read_text()
HOGS = {"random access": "anonymous", "leak": "leak", "200 processes": "forkbomb"}
SETUPS = {
    "idle machine": "idle",
    "no protection": "nothing",
    "`systemd-run --scope` with limits, and earlyoom": "plan",
    "earlyoom, Debian's defaults": "earlyoom",
    "systemd-oomd, defaults": "oomd",
    "systemd-oomd, with a pressure limit on the model": "oomd-pressure",
    "nohang, defaults": "nohang",
    "nohang, desktop profile": "nohang-desktop",
    "vllm-safe": "vllm-safe",
}
LINES = sorted({words for words in re.findall(r"(?:`|^)(vllm-safe [a-z][^`#|\n]*)", TEXT, re.MULTILINE) if "(" not in words})


def _options(words: list[str]) -> tuple[click.Command, list[str]]:
    """Return the command that the words name, and the options among them."""
    command: click.Command = cli
    for word in words[1:]:
        if isinstance(command, click.Group) and (inner := command.get_command(click.Context(command), word)):
            command = inner
    return command, [word for word in words if word.startswith("--")]


@pytest.mark.parametrize("line", LINES)
def test_a_command_of_the_readme_exists_with_its_options(line: str) -> None:
    words = shlex.split(line)
    assert words[1].rstrip(",;.") in COMMANDS
    command, options = _options(words)
    known = {option for parameter in command.params for option in parameter.opts}
    assert set(options) <= known | {"--help"}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_in_the_readme(name: str) -> None:
    assert f"`vllm-safe {name}" in TEXT


@pytest.mark.parametrize("target", sorted(set(re.findall(r"^make (\S+)", TEXT, re.MULTILINE))))
def test_a_target_of_make_exists(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


CONFIGURATIONS = re.findall(r"^```yaml\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("shown", CONFIGURATIONS)
def test_a_configuration_of_the_readme_is_one(shown: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(shown)
    assert load(tmp_path / "config.yaml").models


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\((?!http)([^)#]+)\)", TEXT))))
def test_a_link_into_the_repository_leads_somewhere(link: str) -> None:
    assert (ROOT / link).exists()


def test_the_figures_of_the_comparison_are_those_of_the_benchmark() -> None:
    measured = {tuple(row[:3]): row for row in (re.split(r" *\| *", line.strip("| ")) for line in RESULTS.splitlines()) if len(row) == 15}
    table = re.search(r"^\| \|( random access.*?)\n\n", TEXT, re.MULTILINE | re.DOTALL)
    assert table
    columns, _, *rows = [line.strip("| ").split(" | ") for line in table[1].splitlines()]
    assert [row[0] for row in rows] == list(SETUPS)
    for setup, *cells in rows:
        for column, cell in zip(columns, cells, strict=True):
            hog, disk = re.fullmatch(r"(.*), (\d+) IOPS", column).groups()  # type: ignore[union-attr]
            row = measured[HOGS[hog], disk, SETUPS[setup]]
            worst = row[6].split("/")[1]
            assert cell == f"{row[4].replace('%', ' %')}, " + ("not through" if worst == "120.0" else f"{worst} s"), (setup, column)
