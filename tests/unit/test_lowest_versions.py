"""The package with the lowest versions of its dependencies that pyproject.toml allows: `make venv` puts them into .venv/lowest."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.lowest_versions import lowest_versions

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv/lowest/bin/python"
# All but what runs with the engine's own Python and huggingface_hub.
IMPORT_ALL = """
import importlib, pkgutil, vllm_safe
for module in pkgutil.walk_packages(vllm_safe.__path__, "vllm_safe."):
    if ".as_engine" not in module.name and not module.name.endswith("__main__"):
        importlib.import_module(module.name)
"""
VERSIONS = """
from importlib.metadata import version
print(*(f"{name}=={version(name)}" for name in ("click", "nvidia-ml-py", "plotille", "PyYAML", "psutil", "aiohttp")))
"""


@pytest.fixture(autouse=True)
def made() -> None:
    if not PYTHON.exists():
        pytest.skip(f"there is no {PYTHON}: make venv")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"}
    return subprocess.run([PYTHON, *arguments], env=env, capture_output=True, text=True, check=False)


def test_they_are_what_pyproject_says() -> None:
    assert run("-c", VERSIONS).stdout.split() == lowest_versions(ROOT / "pyproject.toml")


def test_every_module_can_be_imported() -> None:
    done = run("-c", IMPORT_ALL)
    assert (done.stderr, done.returncode) == ("", 0)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--help"], 0, "Usage: vllm-safe COMMAND"),
        (["show", "--help"], 0, "Usage: vllm-safe show"),
        (["check"], None, "fail  "),
        (["show", "qwen72b"], 0, "memory_max"),
        (["swap", "creat"], 2, "Did you mean 'create'?"),
        (["show"], 2, "Missing argument"),
    ],
)
def test_the_commands_work(arguments: list[str], code: int | None, words: str) -> None:
    """As with the versions that are locked; what `check` finds is the machine's."""
    config = [] if "--help" in arguments else ["--config", str(ROOT / "etc/vllm-safe/config.yaml")]
    done = run("-m", "vllm_safe", *arguments[:1], *(config if arguments[:1] != ["swap"] else []), *arguments[1:])
    assert "Traceback" not in done.stderr
    assert words in done.stdout + done.stderr
    assert code is None or done.returncode == code, done.stderr
