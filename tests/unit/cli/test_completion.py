"""The completions that TAB offers in bash, zsh and fish: with the variables of each shell, and with the function that bash loads."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

CONFIG = "models:\n  small: {command: [server], port: 8001}\n  smart: {model: a/b, port: 8002}\n  other.one: {model: a/c, port: 8003}\n"
MODELS = {"small", "smart", "other.one"}
# The program, with the files of a test instead of those of the machine.
PROGRAM = """\
#!{python}
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
from vllm_safe.common import paths
from vllm_safe.config import reader
paths.RUNS, reader.DEFAULT_PATH = Path({folder!r}, "runs"), Path({folder!r}, "config.yaml")
from vllm_safe.cli.main import main
sys.exit(main(sys.argv[1:]))
"""
ROOT = Path(__file__).parents[3]


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """Create a folder with vllm-safe, its configuration, and recorded runs of a model that is in it and of one that no longer is."""
    (tmp_path / "config.yaml").write_text(CONFIG)
    for name in ("small", "gone"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    program = tmp_path / "vllm-safe"
    program.write_text(PROGRAM.format(python=sys.executable, root=str(ROOT), folder=str(tmp_path)))
    program.chmod(0o755)
    return tmp_path


def environment(machine: Path, **more: str) -> dict[str, str]:
    return os.environ | {"PATH": f"{machine}:{os.environ['PATH']}", "PYTHONDONTWRITEBYTECODE": "1"} | more


def completion_variables(shell: str, words: list[str]) -> dict[str, str]:
    """Return the variables that the script of a shell sets when TAB is pressed in the last of the words."""
    line, number = " ".join(map(shlex.quote, words[:-1])) + " " + words[-1], str(len(words) - 1)
    return {
        "bash": {"COMP_WORDS": "\n".join(words), "COMP_CWORD": number},
        "zsh": {"COMP_WORDS": line, "COMP_CWORD": number},
        "fish": {"COMP_WORDS": line, "COMP_CWORD": words[-1]},
    }[shell] | {"_VLLM_SAFE_COMPLETE": f"{shell}_complete"}


def offered(shell: str, machine: Path, *words: str) -> set[str]:
    """Return the completions that the script of a shell reads from the answer.

    Nothing may be printed to stderr, as it would appear in the line that is typed.
    """
    variables = environment(machine, **completion_variables(shell, ["vllm-safe", *words]))
    answer = subprocess.run(["vllm-safe"], env=variables, capture_output=True, text=True, check=False)
    assert answer.stderr == ""
    if shell == "zsh":
        lines = answer.stdout.splitlines()
        return {key.replace("\\:", ":") for kind, key in zip(lines[::3], lines[1::3], strict=False) if kind == "plain"}
    return {line.removeprefix("plain,").split("\t")[0] for line in answer.stdout.splitlines() if line.startswith("plain,")}


SHELLS = pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])


@SHELLS
@pytest.mark.parametrize("words", [["show"], ["drill", "--model"]])
def test_all_models_are_offered_and_by_what_is_typed_fewer(shell: str, words: list[str], machine: Path) -> None:
    assert offered(shell, machine, *words, "") == {*MODELS, "gone"}
    assert offered(shell, machine, *words, "sm") == {"small", "smart"}


@pytest.mark.parametrize("command", ["fetch", "status", "top", "why", "report", "bundle", "apply"])
def test_so_does_every_command_that_takes_a_model(command: str, machine: Path) -> None:
    assert offered("bash", machine, command, "") == {*MODELS, "gone"}


@SHELLS
def test_another_configuration_that_the_line_names_is_the_one_that_counts(shell: str, machine: Path) -> None:
    (machine / "other.yaml").write_text("models: {elsewhere: {model: a/b}}")
    assert offered(shell, machine, "show", "--config", str(machine / "other.yaml"), "") == {"elsewhere", "small", "gone"}


@pytest.mark.parametrize("text", ["models: [", "models: {small: {prot: 1}}", ""])
def test_a_mistake_in_the_configuration_offers_fewer_and_says_nothing(text: str, machine: Path) -> None:
    (machine / "config.yaml").write_text(text)
    assert offered("bash", machine, "show", "") == {"small", "gone"}


@SHELLS
def test_without_a_configuration_and_without_runs_there_is_nothing(shell: str, machine: Path) -> None:
    (machine / "config.yaml").unlink()
    (machine / "runs").rename(machine / "ran")
    assert offered(shell, machine, "show", "") == set()


def test_options_are_offered_too(machine: Path) -> None:
    assert offered("bash", machine, "drill", "--m") == {"--model"}
    assert {"--run", "--output", "--text", "--force"} <= offered("bash", machine, "report", "--")


@SHELLS
def test_the_build_installs_a_script_that_asks_the_program(shell: str, machine: Path) -> None:
    variables = environment(machine, _VLLM_SAFE_COMPLETE=f"{shell}_source")
    script = subprocess.run(["vllm-safe"], env=variables, capture_output=True, text=True, check=True).stdout
    assert f"_VLLM_SAFE_COMPLETE={shell}_complete" in script
    rules = (ROOT / "debian/rules").read_text()
    assert re.search(rf"_VLLM_SAFE_COMPLETE={shell}_source \$\(COMPLETION\) > \$\(SHARE\)/\S*vllm-safe", rules)


@pytest.mark.parametrize(
    ("line", "expected"),
    [("show ''", {*MODELS, "gone"}), ("show sma", {"small", "smart"}), ("drill --model ''", {*MODELS, "gone"}), ("sh", {"show"})],
)
def test_bash_itself(line: str, expected: set[str], machine: Path) -> None:
    """Call the completion function of the installed script, as readline does."""
    variables = environment(machine)
    script = subprocess.run(["vllm-safe"], env=variables | {"_VLLM_SAFE_COMPLETE": "bash_source"}, capture_output=True, check=True).stdout
    (machine / "completion").write_bytes(script)
    typed = f"""
        . {machine}/completion
        [[ $(complete -p vllm-safe) == *' -F '* ]] || exit 3
        COMP_WORDS=(vllm-safe {line}) COMPREPLY=()
        COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
        _vllm_safe_completion vllm-safe
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    shown = subprocess.run(["bash", "--norc", "-c", typed], env=variables, capture_output=True, text=True, check=False)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert set(shown.stdout.split()) == expected
