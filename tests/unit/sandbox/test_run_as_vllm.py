"""Tests of running a program as user vllm: the call of systemd-run, and the handling of its output."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from vllm_safe.common import run_lock
from vllm_safe.common.errors import Failure
from vllm_safe.common.sizes import GIB
from vllm_safe.sandbox import run_as_vllm
from vllm_safe.sandbox.run_as_vllm import AsVllm, Outcome, program_failure

TASK = AsVllm("vllm-safe-test", ("/usr/bin/env", "$HOME"), "do it")


def test_it_runs_as_vllm_in_the_slice_and_can_gain_nothing() -> None:
    command = TASK.command()
    assert command[0] == "systemd-run"
    for option in ("--unit=vllm-safe-test", "--uid=vllm", "--gid=vllm", "--wait", "--pipe"):
        assert option in command
    for line in (
        "Slice=vllm.slice",
        "NoNewPrivileges=yes",
        "CapabilityBoundingSet=",
        "ProtectSystem=strict",
        f"MemoryMax={4 * GIB}",
        "MemorySwapMax=0",
    ):
        assert f"--property={line}" in command


def test_the_program_is_taken_word_by_word() -> None:
    command = TASK.command()
    assert command[command.index("--") + 1 :] == ("/usr/bin/env", "$$HOME")  # the manager reduces two $ to one


def test_what_it_may_touch_is_named() -> None:
    task = AsVllm(
        "u",
        ("/bin/true",),
        "do it",
        writable=(Path("/w 1"),),
        readable=(Path('/r"2'),),
        credentials={"token": Path("/root/token")},
        network=False,
    )
    command = task.command()
    for line in (
        'ReadWritePaths="/w 1"',
        r'BindReadOnlyPaths="/r\"2"',
        "LoadCredential=token:/root/token",
        "PrivateNetwork=yes",
        "PrivateDevices=yes",
    ):
        assert f"--property={line}" in command
    assert "--property=PrivateDevices=no" in AsVllm("u", ("/bin/true",), "do it", devices=True, time_limit=9).command()


def test_its_environment_is_ours_to_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "of root")
    assert not [word for word in TASK.command() if "SECRET" in word]
    assert "--setenv=HOME=/var/lib/vllm-safe/home" in TASK.command()


def test_the_proxy_is_passed_on_unless_it_has_a_password(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    monkeypatch.setenv("HTTP_PROXY", "http://me:word@proxy.example:3128")
    environment = run_as_vllm.network_environment()
    assert environment["https_proxy"] == "http://proxy.example:3128"
    assert "HTTP_PROXY" not in environment


def test_a_plan_shows_the_program() -> None:
    assert TASK.describe() == "do it, as user vllm: /usr/bin/env '$HOME'"


@pytest.mark.parametrize(
    ("outcome", "words"),
    [
        (Outcome("exit-code", 3, "", "one\nlast words\n\n"), "could not do it: last words"),
        (Outcome("exit-code", 3, "", ""), "could not do it (exit-code, status 3)"),
        (Outcome("oom-kill", 137, "", "x"), "could not do it: it needed more than 4096 MiB of RAM"),
        (Outcome("timeout", 143, "", ""), "could not do it: it took longer than 60 s"),
    ],
)
def test_how_it_ended_is_said(outcome: Outcome, words: str) -> None:
    assert program_failure(AsVllm("u", ("x",), "do it", time_limit=60), outcome).message == words


def test_stdout_is_data_and_stderr_is_shown(capfd: pytest.CaptureFixture[str]) -> None:
    status, stdout, stderr = run_as_vllm._pump(("sh", "-c", "echo data; echo words >&2; exit 3"), quiet=False)
    assert (status, stdout, stderr) == (3, "data\n", b"words\n")
    assert capfd.readouterr() == ("", "words\n")


def test_quiet_shows_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    assert run_as_vllm._pump(("sh", "-c", "echo words >&2"), quiet=True) == (0, "", b"words\n")
    assert capfd.readouterr() == ("", "")


def test_a_flood_does_not_fill_our_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_as_vllm, "DATA", 1000)
    program = (sys.executable, "-c", "import os\nfor _ in range(100): os.write(1, b'x' * 60000), os.write(2, b'y' * 60000)")
    status, stdout, stderr = run_as_vllm._pump(program, quiet=True)
    assert (status, len(stdout), len(stderr)) == (0, 1000, run_as_vllm.TAIL)


def test_a_terminal_changes_nothing_on_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = os.openpty()
    with os.fdopen(theirs, "w") as terminal, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", terminal)
        channel = run_as_vllm._channel(terminal=True)
    os.write(channel[1], b"\rhalf \x1b[1mway\n")
    assert os.isatty(channel[1])
    assert os.read(channel[0], 100) == b"\rhalf \x1b[1mway\n"
    for handle in (ours, *channel):
        os.close(handle)


def test_control_sequences_are_not_words() -> None:
    assert run_as_vllm._plain(b"\x1b[2K\r50 %\r\x1b[31merror\x1b[0m: why\n") == "\n50 %\nerror: why\n"


def test_a_second_one_is_refused_while_the_first_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_lock, "RUN", tmp_path)
    with run_as_vllm.lock_unit("u", "the work"):
        with pytest.raises(Failure, match="the work is running already"), run_as_vllm.lock_unit("u", "the work"):
            pass
        with run_as_vllm.lock_unit("other", "other work"):
            pass
    with run_as_vllm.lock_unit("u", "the work"):
        pass


def test_without_root_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(Failure, match="needs root"):
        TASK.run()


def test_what_steered_the_terminal_is_no_part_of_the_last_words() -> None:
    """By the same pattern as elsewhere: a title that ends with ST, and a character set, used to stay."""
    assert run_as_vllm._plain(b"\x1b]0;title\x1b\\\x1b[1;31merror\x1b(B\x1b[m: no\r") == "error: no\n"
