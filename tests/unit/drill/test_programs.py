"""The programs that run during a drill: the hog and the heartbeat end with the process that started them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vllm_safe.drill import hog, login_probes
from vllm_safe.drill.login_probes import GAP, LOGIN, LONGEST, LoginWatch

FOLDER = Path(hog.__file__).parent


def start(name: str, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-I", str(FOLDER / name), *words], stdin=-1, stdout=-1, text=True)


def ends(process: subprocess.Popen[str]) -> str:
    """Return the output of the process and its children until all of them have ended: they share the pipe."""
    assert process.stdout
    with process:
        return process.stdout.read()


@pytest.mark.parametrize(("name", "words"), [("hog.py", [str(64 << 20), "2", "300"]), ("heartbeat.py", [])])
def test_it_ends_when_its_starter_does(name: str, words: list[str]) -> None:
    process = start(name, *words)
    assert process.stdin
    assert process.stdout
    assert float(process.stdout.readline()) >= 0
    process.stdin.close()
    process.stdin = None
    ends(process)
    assert process.returncode == 0


def test_the_hog_ends_by_its_own_clock_and_counts() -> None:
    process = start("hog.py", str(32 << 20), "2", "3")
    counts = [int(line) for line in ends(process).splitlines()]
    assert process.returncode == 0
    assert counts == sorted(counts)
    assert counts[-1] > 0


def test_a_hog_that_loses_a_process_ends() -> None:
    """Whatever kills one of a model's processes for memory has killed the model."""
    process = start("hog.py", str(64 << 20), "2", "300")
    assert process.stdout
    process.stdout.readline()
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[0]), signal.SIGKILL)
    ends(process)
    assert process.returncode == 0


def test_a_hog_without_memory_ends() -> None:
    output = ends(start("hog.py", "0", "1", "300"))
    assert set(output.split()) <= {"0"}


def test_programs_of_the_drill_need_nothing_but_the_standard_library() -> None:
    for name in ("hog.py", "heartbeat.py", "login_probes.py"):
        loaded = "import sys, runpy; runpy.run_path(sys.argv[1], run_name='x'); print('click' in sys.modules, 'vllm_safe' in sys.modules)"
        done = subprocess.run([sys.executable, "-I", "-S", "-c", loaded, FOLDER / name], check=True, capture_output=True, text=True)
        assert done.stdout == "False False\n"


class TestTimed:
    def test_how_long_it_took(self) -> None:
        seconds = login_probes.time_command(["/bin/sleep", "0.2"], Path("/bin/sleep"), Path("/nowhere"))
        assert seconds is not None
        assert seconds >= 0.2

    @pytest.mark.parametrize("command", [["/bin/false"], ["/nowhere"]])
    def test_what_failed_has_no_time(self, command: list[str]) -> None:
        assert login_probes.time_command(command) is None

    def test_what_takes_for_ever_takes_long(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(login_probes, "LONGEST", 0.1)
        assert login_probes.time_command(["/bin/sleep", "60"]) == 0.1
        assert LONGEST == 120.0


class TestWatch:
    def test_it_samples_until_its_end(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(login_probes, "EVERY", 0.05)
        monkeypatch.setattr(login_probes, "system_stalls", lambda _: 0.0)
        answers = iter([0.5, None, *[0.25] * 10_000])
        with LoginWatch({LOGIN: lambda: next(answers)}) as watch:
            while watch.last(GAP) is None or watch.last("stall:user.slice") is None or watch.last(LOGIN) != 0.25:
                pass
        assert (watch.last(LOGIN), watch.worst(LOGIN)) == (0.25, 0.5)
        assert [sample.what for sample in watch.failed] == [LOGIN]
        count = len(watch.samples)
        assert all(sample.value >= 0 for sample in watch.samples)
        assert len(watch.samples) == count

    def test_a_stall_has_the_time_that_it_is_of_and_the_last_one_counts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(login_probes, "EVERY", 60.0)
        totals = iter([1.0, 1.0, 1.0, 60.0, 60.0, 60.0])
        monkeypatch.setattr(login_probes, "system_stalls", lambda _: next(totals))
        start = time.monotonic()
        with LoginWatch({}) as watch:
            while not watch._threads[-1].is_alive():
                pass
        stalls = [sample for sample in watch.samples if sample.what.startswith("stall:")]
        assert [sample.value for sample in stalls] == [1.0] * 3
        assert all(0 < sample.span <= sample.at - start for sample in stalls)

    def test_without_psi_there_is_no_stall(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(login_probes, "EVERY", 0.01)
        monkeypatch.setattr(login_probes, "SLICES", ("nowhere.slice",))
        assert login_probes.system_stalls("nowhere.slice") is None
        assert login_probes._pressures(["nowhere.slice"]) == {}
