"""The program: its imports, its refusals, and its wake-ups."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vllm_safe.guard import guard_main as program
from vllm_safe.guard.guard_decision import TICK
from vllm_safe.guard.guard_journal import Journal
from vllm_safe.guard.guard_main import ESTIMATING, SLOW, GuardLoop

ROOT = Path(__file__).parents[3]


def test_it_loads_nothing_that_it_has_no_use_for() -> None:
    code = f"import sys; sys.path.append({str(ROOT)!r}); import vllm_safe.guard.guard_main; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-I", "-S", "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert not {
        "json",
        "dataclasses",
        "inspect",
        "pathlib",
        "subprocess",
        "logging",
        "click",
        "yaml",
        "traceback",
        "typing",
        "re",
        "vllm_safe.common.errors",
    } & set(loaded)


def test_on_cgroup_v1_or_a_hybrid_it_refuses_and_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(program, "notify", lambda **fields: said.append(fields["STATUS"]))
    (tmp_path / "unified").mkdir()
    assert program.main(str(tmp_path)) == 78
    assert "\nRestartPreventExitStatus=78\n" in (ROOT / "systemd/vllm-safe-guard.service").read_text()
    assert "systemd.unified_cgroup_hierarchy=1" in said[0]


class Poll:
    """A poll object that returns the given events for the first trigger, then SIGTERM."""

    def __init__(self, *events: int) -> None:
        self.events = list(events)
        self.registered: list[int] = []
        self.timeouts: list[float] = []

    def register(self, file: int, _events: int) -> None:
        self.registered.append(file)

    def unregister(self, file: int) -> None:
        self.registered.remove(file)

    def poll(self, timeout: float) -> list[tuple[int, int]]:
        self.timeouts.append(timeout)
        if self.events:
            return [(self.registered[1], self.events.pop(0))]
        return [(self.registered[0], select.POLLIN)]


@pytest.fixture
def loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Poll], GuardLoop]]:
    """Return a function that makes a prepared loop on a directory that stands in for the cgroups."""
    reading, writing = os.pipe()
    os.write(writing, bytes([signal.SIGTERM]))
    monkeypatch.setattr(program, "open_signal_pipe", lambda _: reading)
    monkeypatch.setattr(program, "notify", lambda **_: None)
    (tmp_path / "system.slice").mkdir()

    def begin(poll: Poll) -> GuardLoop:
        monkeypatch.setattr(select, "poll", lambda: poll)
        made = GuardLoop(Journal(str(tmp_path), ""), str(tmp_path), str(tmp_path / "plan"))
        made.prepare()
        return made

    yield begin
    os.close(reading)
    os.close(writing)


def test_the_trigger_of_a_cgroup_that_is_gone_is_dropped_and_does_not_wake_us_for_ever(
    tmp_path: Path, loop: Callable[[Poll], GuardLoop]
) -> None:
    pressure = tmp_path / "system.slice/memory.pressure"
    pressure.write_text("full avg10=0.00 avg60=0.00 avg300=0.00 total=0\n")
    poll = Poll(select.POLLERR | select.POLLPRI)
    assert loop(poll).run() == 0
    assert len(poll.registered) == 1  # the signals
    assert poll.timeouts == [SLOW * 1000] * 2


def test_pressure_has_it_look_at_short_intervals(tmp_path: Path, loop: Callable[[Poll], GuardLoop]) -> None:
    (tmp_path / "system.slice/memory.pressure").write_text("full avg10=0.00 avg60=0.00 avg300=0.00 total=0\n")
    poll = Poll(select.POLLPRI)
    assert loop(poll).run() == 0
    assert poll.timeouts == [SLOW * 1000, TICK * 1000]


def test_without_psi_it_looks_each_second(loop: Callable[[Poll], GuardLoop]) -> None:
    poll = Poll()
    assert loop(poll).run() == 0
    assert poll.timeouts == [ESTIMATING * 1000]
    assert ESTIMATING <= 1
