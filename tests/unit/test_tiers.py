"""Tiers side by side (tests/tiers): every test is counted, a failure hides nothing, and a Ctrl-C leaves no process."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.tiers.plan import TIERS, command, lanes
from tests.tiers.results import Results, costs, progress

ROOT = Path(__file__).parents[2]
GOOD = "def test_one(): pass\ndef test_two(): pass\n"
BAD = "def test_three(): pass\ndef test_four(): assert 1 + 1 == 3\n"
BUSY = "import time\ndef test_busy():\n    end = time.process_time() + 0.5\n    while time.process_time() < end: pass\n"
DIES = "import os\ndef test_dies(): os._exit(3)\ndef test_after(): pass\n"
ENDLESS = """
import os, pathlib, subprocess, time, pytest

@pytest.fixture
def machine():
    with subprocess.Popen(["setpriv", "--pdeathsig", "KILL", "sleep", "600"]) as process:
        pathlib.Path(__file__).with_name("pids").write_text(f"{process.pid} {os.getpid()}")
        yield
        pathlib.Path(__file__).with_name("torn-down").touch()
        process.kill()

def test_endless(machine): time.sleep(600)
"""
RUN = """
import sys
from tests.tiers.plan import Tier
from tests.tiers.runner import run
without = [word for plugin in ("cacheprovider", "hypothesispytest", "anyio") for word in ("-p", "no:" + plugin)]
arguments = ("-c", sys.argv[1] + "/pytest.ini", "--rootdir", sys.argv[1], *without)
sys.exit(run([Tier(name, (*arguments, sys.argv[1] + "/" + name), 1, lane) for name, _, lane in (of.partition("@") for of in sys.argv[2:])]))
"""


def start(folder: Path, tests: dict[str, str], *options: str) -> subprocess.Popen[str]:
    """Run tiers of made-up tests; a name is TIER@LANE."""
    (folder / "pytest.ini").write_text("[pytest]\n")
    for name, text in tests.items():
        tier = folder / name.partition("@")[0]
        tier.mkdir()
        (tier / "test_it.py").write_text(text)
    command = [sys.executable, "-c", RUN, str(folder), *tests]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(folder / "cache")}
    return subprocess.Popen([*options, *command], cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def output(process: subprocess.Popen[str]) -> str:
    return process.communicate(timeout=120)[0]


def exists(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def test_every_test_has_a_line_and_a_failure_hides_nothing(tmp_path: Path) -> None:
    process = start(tmp_path, {"good@a": GOOD, "bad@b": BAD})
    said = output(process)
    assert process.returncode == 1, said
    assert re.search(
        r"^\[good 2/2, bad ./., 0 min\]  passed  good test_it.py::test_two, \d+\.\d s \(processor \d+\.\d s\)$", said, re.MULTILINE
    )
    assert "FAILED  bad test_it.py::test_four" in said
    assert "assert (1 + 1) == 3" in said
    assert re.search(
        r"^FAILED bad .*test_it.py::test_four: assert \(1 \+ 1\) == 3\ngood: 2 passed, bad: 1 passed, 1 failed; \d", said, re.MULTILINE
    ), said


def test_all_passed_is_status_0_and_tiers_of_one_lane_follow_each_other(tmp_path: Path) -> None:
    process = start(tmp_path, {"good@a": GOOD, "busy@a": BUSY})
    said = output(process)
    assert process.returncode == 0, said
    assert said.index("good 2/2, busy 0/?") < said.index("passed  busy ")
    (processor,) = re.findall(r"passed  busy .*processor ([\d.]+) s", said)
    assert float(processor) >= 0.4


def test_a_tier_that_cannot_run_fails_and_says_why(tmp_path: Path) -> None:
    process = start(tmp_path, {"broken@a": "def test_(: pass", "empty@b": "", "dies@c": DIES, "good@a": GOOD})
    said = output(process)
    assert process.returncode == 1, said
    for words in ("broken: pytest ended with status ", "SyntaxError", "empty: pytest ended with status 5", "crashed while running"):
        assert words in said
    assert "dies: 1 failed, 1 not run, good: 2 passed; " in said


def test_an_interrupt_takes_everything_down_in_order(tmp_path: Path) -> None:
    process = start(tmp_path, {"good@a": GOOD, "endless@b": ENDLESS})
    pids = wait_for_pids(tmp_path)
    process.send_signal(signal.SIGINT)
    said = output(process)
    assert (process.returncode, "interrupted" in said) == (130, True), said
    assert not any(exists(pid) for pid in pids)
    assert (tmp_path / "endless/torn-down").exists()
    assert "endless: 1 not run" in said


def test_killed_it_leaves_nothing_either(tmp_path: Path) -> None:
    process = start(tmp_path, {"endless@a": ENDLESS})
    pids = wait_for_pids(tmp_path)
    process.kill()
    end = time.monotonic() + 60
    while any(exists(pid) for pid in pids) and time.monotonic() < end:
        time.sleep(0.1)
    assert not any(exists(pid) for pid in pids)
    output(process)


def wait_for_pids(folder: Path) -> list[int]:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if (told := folder / "endless/pids").exists() and len(pids := told.read_text().split()) == 2:
            return [int(pid) for pid in pids]
        time.sleep(0.05)
    raise AssertionError


def test_only_the_names_of_tiers_are_taken() -> None:
    done = subprocess.run([sys.executable, "-m", "tests.tiers", "vn"], cwd=ROOT, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr.startswith("usage: python -m tests.tiers vm nspawn trixie sid")) == (2, True)


def test_a_release_runs_after_the_containers_and_another_after_the_machines_beside_them() -> None:
    assert [[tier.name for tier in lane] for lane in lanes(list(TIERS.values()))] == [["vm", "sid"], ["nspawn", "trixie", "nodes"]]
    assert "--numprocesses=2" in command(TIERS["vm"])


def test_what_is_heard_of_a_test_is_added_up() -> None:
    of = Results()
    assert of.hear({"total": 3}) is None
    test = "tests/system/test_swap.py::test_a[tests/x]"
    for when, outcome, text in (("setup", "passed", ""), ("call", "failed", "no"), ("teardown", "passed", "")):
        last = of.hear({"test": test, "when": when, "outcome": outcome, "seconds": 2.0, "processor": 1.0, "text": text})
    assert last == (test, "failed", 6.0, 3.0, "no")
    assert of.hear({"test": "crashed", "when": "???", "outcome": "failed", "seconds": 0, "processor": 0, "text": "it"}) is not None
    assert of.counts() == "2 failed, 1 not run"
    assert progress({"vm": of, "nspawn": Results()}, 540) == "vm 2/3, nspawn 0/?, 9 min"
    assert "test_swap" in costs({"vm": of})[2]
    assert costs({"vm": of})[-2:] == ["      6         3  vm test_swap.py::test_a[tests/x]", "      0         0  vm crashed"]
