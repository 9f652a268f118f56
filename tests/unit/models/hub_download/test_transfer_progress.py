"""Tests of the progress line."""

from __future__ import annotations

import pytest

from vllm_safe.models.as_engine.hub_download import transfer_progress
from vllm_safe.models.as_engine.hub_download.transfer_progress import TransferProgress, progress_line

GIB, MIB = 1 << 30, 1 << 20


@pytest.mark.parametrize(
    ("done", "total", "rate", "line"),
    [
        (0, 0, 0, "0.0 of 0.0 KiB, 100 %"),
        (512, 2048, 0, "0.5 of 2.0 KiB, 25 %"),
        (12 * GIB, 72 * GIB, 0, "12.0 of 72.0 GiB, 16 %"),
        (12 * GIB, 72 * GIB, 45 * MIB, "12.0 of 72.0 GiB, 16 %, 45.0 MiB/s, 23 min left"),
        (0, 72 * GIB, MIB, "0.0 of 72.0 GiB, 0 %, 1.0 MiB/s, 20 h 29 min left"),
        (71 * GIB, 72 * GIB, 30 * MIB, "71.0 of 72.0 GiB, 98 %, 30.0 MiB/s, 34 s left"),
        (72 * GIB, 72 * GIB, 30 * MIB, "72.0 of 72.0 GiB, 100 %"),
    ],
)
def test_lines(done: int, total: int, rate: float, line: str) -> None:
    assert progress_line(done, total, rate) == line


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Replace the clock by a list with one time."""
    now = [100.0]
    monkeypatch.setattr(transfer_progress.time, "monotonic", lambda: now[0])
    return now


def test_without_a_terminal_a_line_now_and_then(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    shown = TransferProgress(100 * MIB)
    for _ in range(100):
        clock[0] += 1
        shown.came(MIB)
    shown.finish()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "1.0 of 100.0 MiB, 1 %"
    assert lines[1] == "31.0 of 100.0 MiB, 31 %, 1.0 MiB/s, 69 s left"
    assert lines[-1] == "100.0 of 100.0 MiB, 100 %"
    assert len(lines) == 5


def test_what_is_here_already_does_not_make_it_look_fast(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    shown = TransferProgress(1000 * MIB)
    shown.found(500 * MIB)
    for _ in range(40):
        clock[0] += 1
        shown.came(MIB)
    assert "1.0 MiB/s" in capsys.readouterr().err.splitlines()[-1]


def test_on_a_terminal_one_line_that_changes(
    monkeypatch: pytest.MonkeyPatch, clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setattr(transfer_progress.shutil, "get_terminal_size", lambda: type("Size", (), {"columns": 20}))
    shown = TransferProgress(100 * MIB)
    for _ in range(4):
        clock[0] += 1
        shown.came(MIB)
    shown.tell("the hub is busy")
    shown.finish()
    said = capsys.readouterr().err
    assert said.count("\n") == 2
    assert all(len(part.partition("\x1b")[0].strip()) < 20 for part in said.split("\r"))
