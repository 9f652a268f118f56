"""The facts about a running machine for `check`."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from vllm_safe.check import check_facts


@contextmanager
def answering(status: int, body: bytes, keys: list[str | None]) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            keys.append(self.headers.get("Authorization"))
            self.send_response(status)
            self.send_header("Location", "/elsewhere")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1/models"
        finally:
            server.shutdown()
            thread.join()


def test_the_list_of_a_server_and_the_key_it_is_asked_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")  # not used for a server on this machine
    keys: list[str | None] = []
    with answering(200, b'{"data": [{"id": "demo"}]}', keys) as url:
        assert check_facts.ask_models(url, "secret") == check_facts.Served(("demo",))
        assert check_facts.ask_models(url, "") == check_facts.Served(("demo",))
    assert keys == ["Bearer secret", None]


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (401, b"", "returned HTTP 401"),
        (302, b"", "returned HTTP 302"),
        (200, b"<html>", "did not return a model list"),
        (200, b'{"data": 3}', "did not return a model list"),
        (200, b"[]", "did not return a model list"),
        (200, b"[" * 100_000, "did not return a model list"),
    ],
)
def test_other_answers_are_problems(status: int, body: bytes, words: str) -> None:
    with answering(status, body, []) as url:
        assert words in check_facts.ask_models(url, "").problem


def test_nobody_there() -> None:
    with answering(200, b"", []) as url:
        pass
    assert "did not respond" in check_facts.ask_models(url, "").problem


def test_arguments_of_a_process() -> None:
    pipe, program = subprocess.PIPE, "print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", program, "-m", "5"], stdin=pipe, stdout=pipe) as process:
        assert process.stdout
        process.stdout.readline()  # during exec a process has no arguments yet
        assert check_facts.read_earlyoom_arguments(process.pid) == ("-c", program, "-m", "5")
        process.communicate(b"\n")
    assert check_facts.read_earlyoom_arguments(0) == ()
    assert check_facts.read_earlyoom_arguments(2**22 + 1) == ()


def test_overcommit(tmp_path: Path) -> None:
    assert check_facts.read_overcommit(tmp_path) == 0
    (tmp_path / "proc/sys/vm").mkdir(parents=True)
    (tmp_path / "proc/sys/vm/overcommit_memory").write_text("2\n")
    assert check_facts.read_overcommit(tmp_path) == 2


def test_active_units() -> None:
    assert check_facts.active_units({"a": {"ActiveState": "active"}, "b": {"ActiveState": "failed"}}, ["a", "b", "c"]) == ("a",)


def test_only_real_disks_that_turn_have_a_scheduler_that_counts(tmp_path: Path) -> None:
    disks = {"sda": ("1", "none [mq-deadline] bfq"), "nvme0n1": ("0", "[none] mq-deadline"), "loop0": ("1", "none"), "sdb": ("1", "none")}
    for name, (rotational, scheduler) in disks.items():
        (tmp_path / "sys/block" / name / "queue").mkdir(parents=True)
        (tmp_path / "sys/block" / name / "queue/rotational").write_text(f"{rotational}\n")
        (tmp_path / "sys/block" / name / "queue/scheduler").write_text(f"{scheduler}\n")
        if name != "loop0":
            (tmp_path / "sys/block" / name / "device").mkdir()
    assert check_facts.read_hard_disks(tmp_path) == {"sda": "mq-deadline", "sdb": "none"}
    assert check_facts.read_hard_disks(tmp_path / "empty") == {}
