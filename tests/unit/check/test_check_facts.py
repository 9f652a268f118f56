"""The facts about a running machine for `check`."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from vllm_safe.check import check_facts
from vllm_safe.check.check_facts import MeasuredDisk
from vllm_safe.host.disk_pace import DiskPace
from vllm_safe.record.kill_evidence import JournalLine


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


def test_what_the_kernel_logged_is_whole_only_with_its_first_message(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    lost = JournalLine(5.0, 2.0, True, "NVRM: Xid (PCI:0000:07:00): 79, pid=812, name=python3, GPU has fallen off the bus.")  # noqa: FBT003
    boot = JournalLine(3.0, 0.0, True, "Linux version 6.1.0-41-amd64")  # noqa: FBT003 - a field of a tuple
    for lines, whole in (([boot, lost], True), ([lost], False), ([], False)):
        monkeypatch.setattr(check_facts, "read_journal", lambda _since, grep, found=lines: (found if "NVRM" in grep else [], True))
        log = check_facts.read_kernel_log(tmp_path)
        assert (log.whole, [event.data["xid"] for event in log.events]) == (whole, [79] if lost in lines else [])


def test_the_largest_file_is_read_and_what_a_load_reads_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_facts, "measure_pace", lambda descriptor: DiskPace(os.fstat(descriptor).st_size, 1.0))
    for name, size in (("config.json", 10), ("m-1.safetensors", 5000), ("m-2.safetensors", 4000)):
        (tmp_path / name).write_bytes(bytes(size))
    assert check_facts.measure_disk(str(tmp_path), tmp_path / "swapfile") == MeasuredDisk("m-1.safetensors", DiskPace(5000, 1.0), 9000)


def test_without_a_model_the_swapfile_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_facts, "measure_pace", lambda descriptor: DiskPace(os.fstat(descriptor).st_size, 1.0))
    swapfile = tmp_path / "swapfile"
    swapfile.write_bytes(bytes(8192))
    assert check_facts.measure_disk(str(tmp_path / "none"), swapfile) == MeasuredDisk(str(swapfile), DiskPace(8192, 1.0))
    link = tmp_path / "link"
    link.symlink_to(swapfile)
    assert check_facts.measure_disk(str(tmp_path / "none"), link) is None
    assert check_facts.measure_disk(str(tmp_path / "none"), tmp_path / "gone") is None
