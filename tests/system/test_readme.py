"""The commands of README.md: the demo, and the first model, typed as written there. With the real vLLM, already downloaded."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.beds import engine
from tests.beds.nspawn import Nspawn
from tests.demo.__main__ import ANSWER

pytestmark = [pytest.mark.nspawn, pytest.mark.engine]

README = Path(__file__).parents[2] / "README.md"


def _block(title: str) -> list[str]:
    """Return the commands of the first block of a chapter, without their comments."""
    chapter = README.read_text().partition(f"\n## {title}\n")[2]
    found = re.search(r"```\n(.*?)```", chapter, re.DOTALL)
    assert found
    return [line.partition("    #")[0].rstrip() for line in found[1].splitlines()]


def test_the_demo_ends_with_the_right_answer() -> None:
    """`make demo`, less what it installs on this machine before. As if typed by a person: no make around it hands down its jobs."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    command = [sys.executable, "-m", "tests.demo"]
    done = subprocess.run(command, cwd=engine.REPOSITORY, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert ANSWER.strip() in " ".join(done.stdout.split())
    assert done.stdout.endswith("the throwaway Debian is gone\n")


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
