"""`vllm-safe report` and `vllm-safe status` on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.builders.runs import RUN, make_run, write_run
from vllm_safe.cli.main import main
from vllm_safe.common import paths
from vllm_safe.record import run_reader
from vllm_safe.report.html_report import MARK


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Record two runs of qwen72b, and change to an empty folder."""
    runs = tmp_path / "runs"
    write_run(make_run(run="20261122T000000-00000000", end={"cause": "stopped", "result": "success"}), runs)
    write_run(make_run(end={"cause": "exited", "reason": "it ended", "result": "exit-code"}), runs)
    monkeypatch.setattr(paths, "RUNS", runs)
    for function in (run_reader.list_runs, run_reader.read_run):
        monkeypatch.setattr(function, "__defaults__", (runs,))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def test_the_page_of_the_last_run_is_written_here(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "qwen72b"]) == 0
    assert capsys.readouterr().out.startswith(f"wrote qwen72b-{RUN}.html")
    assert MARK in (recorded / f"qwen72b-{RUN}.html").read_text()
    assert main(["report", "qwen72b"]) == 0, "an earlier report is replaced"


@pytest.mark.parametrize("which", ["2", "20261122T000000-00000000"])
def test_another_run(recorded: Path, which: str) -> None:
    assert main(["report", "qwen72b", "--run", which, "-o", "x.html"]) == 0
    assert "20261122T000000" in (recorded / "x.html").read_text()


@pytest.mark.parametrize("arguments", [["qwen72b", "--run", "3"], ["qwen72b", "--run", "../x"], ["other"], ["../etc"]])
def test_what_is_not_there_is_said(arguments: list[str], recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", *arguments]) in {1, 2}
    assert capsys.readouterr().err.startswith("vllm-safe: ")
    assert list(recorded.iterdir()) == []


def test_a_file_of_somebody_is_not_overwritten(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (recorded / "x.html").write_text("mine")
    assert main(["report", "qwen72b", "-o", "x.html"]) == 1
    assert "--force" in capsys.readouterr().err
    assert main(["report", "qwen72b", "-o", "x.html", "--force"]) == 0


def test_the_text_has_no_colour_on_a_pipe_and_writes_no_file(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "qwen72b", "--text"]) == 0
    out = capsys.readouterr().out
    assert "Memory of the model" in out
    assert "\x1b" not in out
    assert list(recorded.iterdir()) == []


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "config.yaml"
    path.write_text("swap: {size: none}\nmodels:\n  x: {command: [/bin/sh], port: 8000}\n  y: {command: [/bin/sh], port: 8001}\n")
    return str(path)


def test_status_has_every_model_or_the_one_asked_for(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--json", "--config", config]) == 0
    assert [model["name"] for model in json.loads(capsys.readouterr().out)] == ["x", "y"]
    assert main(["status", "y", "--config", config]) == 0
    assert capsys.readouterr().out.startswith("y  ")


def test_status_of_no_such_model_is_said(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "z", "--config", config]) == 1
    assert "there is no model z" in capsys.readouterr().err


def test_a_mistake_in_the_configuration_hides_nothing_that_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").write_text("models: 3\n")
    assert main(["status", "--config", str(tmp_path / "config.yaml")]) == 0
    out, err = capsys.readouterr()
    assert "config.yaml:1:" in err
    assert out
