"""`vllm-safe install` as a person calls it."""

from __future__ import annotations

from pathlib import Path

import pytest

from vllm_safe.apply import engine as apply_engine
from vllm_safe.cli.main import main
from vllm_safe.decide.engine import Place
from vllm_safe.host import engine
from vllm_safe.host.engine import EngineFacts, Installed
from vllm_safe.sizes import GIB

CURRENT = Installed("vllm-0.32.0", "vllm", "0.32.0", whole=True)


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "config.yaml"
    path.write_text("engine:\n  package: vllm\n")
    return str(path)


def found(monkeypatch: pytest.MonkeyPatch, facts: EngineFacts) -> None:
    monkeypatch.setattr(engine, "read_engine", lambda: facts)
    monkeypatch.setattr(apply_engine, "read_place", lambda _facts, _links: Place((3, 11), "x86_64", 100 * GIB))


def test_dry_run_needs_no_root_and_shows_each_step(
    config: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found(monkeypatch, EngineFacts(present=True))
    assert main(["install", "--dry-run", "--config", config]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith("would ") and ", as user vllm: /" in line for line in lines)
    assert lines[-1].startswith("would switch to vllm 0.32.0")


def test_what_is_there_is_not_installed_again(config: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    found(monkeypatch, EngineFacts(current=CURRENT, present=True))
    assert main(["install", "--dry-run", "--config", config]) == 0
    assert capsys.readouterr().out == "vllm 0.32.0 is installed and works. To build it again: vllm-safe install --reinstall\n"


def test_what_is_there_as_the_previous_one_is_switched_to(
    config: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found(monkeypatch, EngineFacts(previous=CURRENT, present=True))
    assert main(["install", "--dry-run", "--config", config]) == 0
    out = capsys.readouterr().out
    assert "vllm 0.32.0 is there as the previous engine" in out
    assert "pip sync" not in out


def test_another_version_is_said_not_to_be_the_tested_one(
    config: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found(monkeypatch, EngineFacts(current=CURRENT, present=True))
    assert main(["install", "--version", "0.33.0", "--dry-run", "--config", config]) == 0
    out = capsys.readouterr().out
    assert "vllm 0.33.0 is not what vllm-safe was tested with" in out
    assert "--generate-hashes" in out


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--rollback"], 1, "there is no previous engine to go back to"),
        (["--rollback", "--version", "1.0"], 2, "--rollback goes back to the previous engine"),
        (["--rollback", "--reinstall"], 2, "--rollback goes back to the previous engine"),
        (["--version", "latest"], 2, "no version"),
        (["--version", "0.32.0 --extra"], 2, "no version"),
        (["--version", "../../x"], 2, "no version"),
        (["extra"], 2, "unexpected extra argument"),
    ],
)
def test_what_cannot_be_meant(config: str, capsys: pytest.CaptureFixture[str], words: list[str], code: int, said: str) -> None:
    assert main(["install", "--dry-run", "--config", config, *words]) == code
    assert said in capsys.readouterr().err


def test_installing_needs_root(config: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert main(["install", "--config", config]) == 2
    assert "root" in capsys.readouterr().err
