"""The first model of README.md, typed as it stands there: with the real vLLM, already downloaded, and the tiny model."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.beds import engine
from tests.beds.nspawn import Nspawn

pytestmark = [pytest.mark.nspawn, pytest.mark.engine]

README = Path(__file__).parents[2] / "README.md"


def _block(title: str) -> list[str]:
    """The commands of the first block of a chapter, without their comments."""
    chapter = README.read_text().partition(f"\n## {title}\n")[2]
    found = re.search(r"```\n(.*?)```", chapter, re.DOTALL)
    assert found
    return [line.partition("    #")[0].rstrip() for line in found[1].splitlines()]


def test_the_first_model_is_served_by_the_commands_of_the_readme(nspawn_serving: Nspawn) -> None:
    bed, commands = nspawn_serving, _block("The first model")
    # The bed has the package, and what its user would write with the editor.
    build, edit, *rest = commands
    assert build.endswith("apt install ./dist/vllm-safe.deb")
    assert edit == "editor /etc/vllm-safe/config.yaml"
    bed.write("/etc/vllm-safe/config.yaml", engine.CONFIG.replace("demo:", "qwen72b:"))
    # `check` fails before the first start, and says what to do.
    said = [bed.run(command, check=command != "vllm-safe check", timeout=300).stdout for command in rest]
    assert '"qwen72b"' in said[-1]
    bed.run("systemctl stop vllm@qwen72b", check=True)
