"""`vllm-safe top` on a terminal and on a pipe, on a machine that is made of files."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.builders.busy_machine import CONFIG, environment_of_machine, make_busy_machine, run_on_machine
from vllm_safe.cli import top
from vllm_safe.cli.main import main
from vllm_safe.driver.card_readings import CardFeed

HOME, ENTER, LEAVE = b"\x1b[H", b"\x1b[?1049h\x1b[?25l", b"\x1b[?25h\x1b[?1049l"
DRAWN = re.compile(rb"GiB used|more lines")  # the head of the GPUs' table, or what is in place of it on a small terminal


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    make_busy_machine(tmp_path)
    return tmp_path


def on_terminal(machine: Path, end: Callable[[subprocess.Popen[bytes], int], object], *, columns: int = 80, rows: int = 24) -> bytes:
    """Run `vllm-safe top` on a terminal until it has drawn the GPUs, then `end` it. Return what it wrote; its exit code is 0."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    before = termios.tcgetattr(theirs)
    command = [machine / "vllm-safe", "top"]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment_of_machine(machine))
    output = b""
    try:
        deadline = time.monotonic() + 60
        while (output.count(HOME) < 2 or not DRAWN.search(output)) and time.monotonic() < deadline:
            if select.select([ours], [], [], 1)[0]:
                output += os.read(ours, 65536)
        end(process, ours)
        assert process.wait(60) == 0
        assert termios.tcgetattr(theirs) == before
        os.close(theirs)
        while select.select([ours], [], [], 1)[0]:
            try:
                output += os.read(ours, 65536)
            except OSError:  # EIO: all is read, and nobody has the other side
                break
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    return output


def last_picture(output: bytes) -> list[str]:
    """Return the lines of the last picture on the alternate screen, without sequences that control the terminal."""
    drawn = output.partition(LEAVE)[0].rpartition(HOME)[2].decode()
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", drawn).split("\n")


@pytest.mark.parametrize(
    "end",
    [
        lambda process, _: process.send_signal(signal.SIGINT),
        lambda process, _: process.send_signal(signal.SIGTERM),
        lambda _, terminal: os.write(terminal, b"q"),
    ],
    ids=["SIGINT", "SIGTERM", "q"],
)
def test_it_redraws_and_leaves_the_terminal_as_it_was(end: Callable[[subprocess.Popen[bytes], int], object], machine: Path) -> None:
    output = on_terminal(machine, end)
    assert output.startswith(ENTER)
    assert output.count(HOME) >= 2
    assert LEAVE in output
    assert b"qwen72b  " in output.rpartition(LEAVE)[2], "the last picture is left on the screen"


@pytest.mark.parametrize(("columns", "rows"), [(80, 24), (132, 43), (60, 12), (0, 0)])
def test_all_of_it_fits_on_the_terminal(columns: int, rows: int, machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does it matter what the environment says, which is not told when a window changes; 0 is what a serial console has."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("LINES", "100")
    output = on_terminal(machine, lambda _, terminal: os.write(terminal, b"q"), columns=columns, rows=rows)
    lines, columns, rows = last_picture(output), columns or 80, rows or 24
    assert len(lines) <= rows
    assert max(map(len, lines)) <= columns
    text = "\n".join(lines)
    assert "41%, 31.0 GiB of 76.0 GiB" in text
    if rows >= 24:
        assert "guard: acted 2 times" in text
        assert re.search(r"^  7 .*9\.9 qwen72b .* 97%  138/170  78 C  x1/16$", text, re.MULTILINE)
        assert "9.9 qwen72b, 1.4 small, 0.2 Xorg" in text
        assert "slowed down by heat: GPU 6" in text
        assert "night  not started" in text


def test_on_a_pipe_it_is_one_screen_of_text(machine: Path) -> None:
    done = run_on_machine(machine, "top")
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert done.stdout.count("\nGPU ") == 1
    assert "NVIDIA GeForce RTX 3060" in run_on_machine(machine, "top", COLUMNS="132").stdout


def test_one_model_alone(machine: Path) -> None:
    said = run_on_machine(machine, "top", "small").stdout
    assert "small  ready since" in said
    assert "qwen72b  loading" not in said
    assert run_on_machine(machine, "top", "nothing").returncode == 1


def test_a_driver_that_hangs_delays_one_screen_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_text(CONFIG)
    monkeypatch.setattr(top, "CardFeed", lambda: CardFeed(("sleep", "300")))
    monkeypatch.setattr(top, "_PATIENCE", 0.2)
    assert main(["top", "--config", str(tmp_path / "config.yaml")]) == 0
    said = capsys.readouterr().out
    assert "GPUs: waiting for the driver (0 s)" in said
    assert "qwen72b" in said
