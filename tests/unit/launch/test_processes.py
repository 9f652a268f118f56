"""Readings of real processes: children of the test, in this machine's /proc."""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from vllm_safe.launch import processes
from vllm_safe.launch.processes import Process, checkpoint_sizes, read_processes

CHILD = "import os, sys, time; sum(i for i in range(3000000)); x = bytearray(50 << 20); print('there', flush=True); time.sleep(60)"


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", CHILD], stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        yield process
        process.kill()


def _find(pid: int, unit: Path | None = None) -> Process | None:
    return next((process for process in read_processes(unit, os.getpid()) if process.pid == pid), None)


def test_a_child_with_all_its_figures(child: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 10  # wait until it sleeps
    while (found := _find(child.pid)) and found.state != "S" and time.monotonic() < until:
        time.sleep(0.01)
    assert found is not None
    assert found.state == "S"
    assert found.comm.startswith("python")
    assert found.cpu > 0
    assert found.faults > 1000
    assert found.called > 10_000  # Python reads its modules
    assert found.resident > 50 << 20
    assert 0 < found.mapped < found.resident


def test_a_stopped_one_and_a_zombie_are_told(child: subprocess.Popen[bytes]) -> None:
    for number, state in ((signal.SIGSTOP, "T"), (signal.SIGKILL, "Z")):
        child.send_signal(number)
        until = time.monotonic() + 10
        while (found := _find(child.pid)) and found.state != state and time.monotonic() < until:
            time.sleep(0.01)
        assert found is not None
        assert found.state == state


def test_all_of_a_cgroup_but_ourselves(child: subprocess.Popen[bytes], tmp_path: Path) -> None:
    (tmp_path / "cgroup.procs").write_text(f"{os.getpid()}\n{child.pid}\n4194305\n")  # the last pid does not exist
    assert [process.pid for process in read_processes(tmp_path, os.getpid())] == [child.pid]


def test_grandchildren_are_found_where_there_is_no_cgroup() -> None:
    with subprocess.Popen(["sh", "-c", "sleep 60 & echo $!; wait"], stdout=subprocess.PIPE) as shell:
        assert shell.stdout
        pid = int(shell.stdout.readline())
        assert _find(pid, Path("/nonexistent")) is not None
        os.kill(pid, signal.SIGKILL)


def test_a_mapped_file_counts_though_it_was_in_the_page_cache(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"x" * (32 << 20))
    touch = """
import mmap, sys
with open(sys.argv[1]) as file:
    mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
print(sum(mapped[::4096]), flush=True)
input()
"""
    with subprocess.Popen([sys.executable, "-c", touch, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        found = _find(process.pid)
        process.kill()
    assert found is not None
    assert found.mapped > 32 << 20
    assert os.sysconf("SC_PAGE_SIZE") == mmap.PAGESIZE


def test_a_name_with_anything_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real = processes._content
    stat = b"7 (a) R b) c) S 1 1 1 0 -1 4194304 100 0 10 0 500 50 0 0 20 0 1 0 12345 0 0 0\n"
    monkeypatch.setattr(processes, "_content", lambda path: stat if path.endswith("/stat") else real(path.replace("/7/", "/self/")))
    found = processes._read(7)
    assert found is not None
    assert (found.comm, found.state, found.started, found.faults, found.cpu) == ("a) R b) c", "S", 12345, 110, 5.5)


def test_figures_that_are_not_shown_are_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    real = processes._content

    def _refuse(path: str) -> bytes:
        if path.endswith("/io"):
            raise PermissionError
        return real(path)

    monkeypatch.setattr(processes, "_content", _refuse)
    found = processes._read(os.getpid())
    assert found is not None
    assert (found.read, found.called) == (0, 0)
    assert found.resident > 0


def test_the_files_of_a_checkpoint_in_the_order_of_reading(tmp_path: Path) -> None:
    for name, size in {"model-10.safetensors": 3, "model-2.safetensors": 2, "model-1.safetensors": 1, "x.bin": 9, "config.json": 8}.items():
        (tmp_path / name).write_bytes(b"x" * size)
    assert checkpoint_sizes(tmp_path) == (1, 2, 3)
    assert checkpoint_sizes(tmp_path / "none") == ()
