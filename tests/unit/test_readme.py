"""What README.md says one can type exists, and every command is in it."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from vllm_safe.cli.entry import COMMANDS
from vllm_safe.cli.main import cli

ROOT = Path(__file__).parents[2]
TEXT = "\n".join((ROOT / name).read_text() for name in ("README.md", "CONTRIBUTING.md"))
LINES = sorted({words for words in re.findall(r"(?:`|^)(vllm-safe [a-z][^`#|\n]*)", TEXT, re.MULTILINE) if "(" not in words})


def _options(words: list[str]) -> tuple[click.Command, list[str]]:
    """The command that the words name, and the options among them."""
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


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\((?!http)([^)#]+)\)", TEXT))))
def test_a_link_into_the_repository_leads_somewhere(link: str) -> None:
    assert (ROOT / link).exists()
