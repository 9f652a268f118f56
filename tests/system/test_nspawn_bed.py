"""The container bed proves itself: what the other tests count on is really there."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.beds import cache
from tests.beds.machine import BedError
from tests.beds.nspawn import Nspawn

pytestmark = pytest.mark.nspawn

UNTIL_KILLED = """
import time
from tests.beds.nspawn import Nspawn
bed = Nspawn()
print(bed._folder.path.name, bed.leader, flush=True)
time.sleep(600)
"""


def test_systemd_runs_and_nothing_failed(nspawn_bed: Nspawn) -> None:
    assert nspawn_bed.out("cat /proc/1/comm") == "systemd"
    assert nspawn_bed.failed_units() == ""


def test_commands_have_their_output_status_and_a_clean_environment(nspawn_bed: Nspawn) -> None:
    done = nspawn_bed.run("cat; echo words >&2; exit 3", stdin="given", check=False)
    assert (done.stdout, done.stderr, done.returncode) == ("given", "words\n", 3)
    assert not re.search("^(PYTHON|PIP_|VIRTUAL_ENV)", nspawn_bed.out("env"), re.MULTILINE)


def test_a_failing_command_raises_with_what_it_said(nspawn_bed: Nspawn) -> None:
    with pytest.raises(BedError, match="could not be found"):
        nspawn_bed.run("systemctl status no-such.service")


def test_a_command_that_takes_too_long_raises_and_does_not_go_on(nspawn_bed: Nspawn) -> None:
    with pytest.raises(BedError, match="took more than 1 s"):
        nspawn_bed.run("echo begun; sleep 60; echo ended > /root/ended", timeout=1)
    assert nspawn_bed.run("pgrep -x sleep", check=False).stdout == ""
    assert not nspawn_bed.exists("/root/ended")


def test_two_beds_have_their_own_files_ports_and_units(nspawn_bed: Nspawn) -> None:
    serve = "systemd-run --unit=web python3 -m http.server 8000"
    with Nspawn(network=False) as other:
        for bed in (nspawn_bed, other):
            bed.run(serve)
            bed.run("until curl --silent --fail localhost:8000; do sleep 0.1; done", timeout=20)
        other.write("/root/mine", "")
        assert not nspawn_bed.exists("/root/mine")


def test_what_a_bed_writes_is_not_in_the_tree(nspawn_bed: Nspawn) -> None:
    nspawn_bed.run("rm /etc/debian_version")
    with Nspawn(network=False) as other:
        assert other.exists("/etc/debian_version")


def test_a_bed_without_network_has_none_and_one_with_it_has(nspawn_bed: Nspawn) -> None:
    assert nspawn_bed.run("ip route get 192.0.2.1", check=False).returncode != 0
    with Nspawn() as other:
        assert "tap0" in other.out("ip route get 192.0.2.1")


def test_nothing_is_left_when_its_owner_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", UNTIL_KILLED], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        name, leader = owner.stdout.readline().split()
        assert Path(f"/proc/{leader}").exists()
        os.kill(owner.pid, signal.SIGKILL)
    with Nspawn(network=False) as next_one:  # sweeps
        next_one.wait_for("the container is gone", lambda: not Path(f"/proc/{leader}").exists())
        assert not (cache.ROOT / "run" / name).exists()
        assert name not in Path("/proc/self/mountinfo").read_text()
        assert not list(Path("/sys/fs/cgroup").glob(f"*/vllm-safe-{name}"))
