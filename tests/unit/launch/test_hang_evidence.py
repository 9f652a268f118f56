"""The report on the processes of a hung server, and signals to them."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator

import pytest

from vllm_safe.launch import hang_evidence
from vllm_safe.launch.processes import Process, read_processes


@pytest.fixture
def child() -> Iterator[Process]:
    with subprocess.Popen(["/bin/sleep", "1000"]) as process:
        try:
            yield next(found for found in read_processes(None, os.getpid()) if found.pid == process.pid)
        finally:
            process.kill()


def test_each_process_is_a_line_with_what_it_does(child: Process) -> None:
    (line,) = hang_evidence.describe_process_states([child._replace(comm="VLLM::Worker_TP", state="D", cpu=12.34, resident=430 << 20)])
    assert line.startswith(f"VLLM::Worker_TP ({child.pid}): state D, ")
    assert line.endswith(", 12.3 s of CPU time, 430 MiB resident")


def test_one_that_has_gone_is_described_by_what_is_known(child: Process) -> None:
    (line,) = hang_evidence.describe_process_states([child._replace(pid=1 << 22, state="Z")])  # above the highest possible pid
    assert line.startswith(f"{child.comm} ({1 << 22}): state Z, 0.0 s of CPU time")


def test_a_thousand_processes_are_not_a_thousand_lines(child: Process) -> None:
    assert len(list(hang_evidence.describe_process_states([child] * 1000))) < 100


def test_signals_reach_who_is_there(child: Process) -> None:
    hang_evidence.signal_all([child._replace(pid=1 << 22), child], signal.SIGTERM)
    assert os.WTERMSIG(os.waitpid(child.pid, 0)[1]) == signal.SIGTERM
