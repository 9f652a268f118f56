"""The drill where everything that it needs is real: it passes with the protection on, fails with it off, and leaves nothing behind."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.beds.nspawn import Nspawn
from tests.beds.vm import Saved, Shape, Virtual
from vllm_safe.drill.login_probes import SSH_COMMAND

ON = "swap: {size: 6G}\nmodels: {}\n"
OFF = """
swap: {size: 6G}
protect: {system: 0, user: 0, init: 0, kernel: 0}
limits: {memory_max: 100%, swap_max: 100%, cpu_weight: 100, io_weight: 100, io_scheduling_class: best-effort}
guard: {enabled: false}
tunables: {lru_gen: false}
models: {}
"""
CONFIG = "/etc/vllm-safe/config.yaml"
# Seconds: what takes two on a real machine, on an emulated one that swaps and shares its processors with other tests. Shorter than the
# hog's own time, which is what the drill takes and two minutes for filling: its own end cannot pass for being ended. The bed doubles them.
PATIENCE = 60
FILLED = 200  # seconds for the measurement of the idle machine and the hog's first 100 MiB, with other tests on the same processors
TRIES = 3  # the host may have other tests to run meanwhile, and the hog is not at fault for a login that waits for the host
HOG = "/sys/fs/cgroup/vllm.slice/vllm-safe-drill.service"


@pytest.fixture(scope="module")
def bed(installed: Saved) -> Iterator[Virtual]:
    """Boot a machine of its own: two processors, 1 GiB of RAM, a hard disk, 6 GiB of swap, and a key with which root may log in.

    The logins that the drill times take all of one emulated processor, and leave next to none to the hog.
    """
    # How long its logins take is what the drill judges by.
    with Virtual(Shape(cpus=2), disk=installed.disk, urgent=True) as machine:
        machine.write(CONFIG, ON)
        machine.run("ssh-keygen -q -t ed25519 -N '' -f /root/.ssh/id_ed25519 && cd /root/.ssh && cat id_ed25519.pub >> authorized_keys")
        machine.run(list(SSH_COMMAND))
        machine.run("vllm-safe swap create", timeout=300)
        machine.throttle(iops=150, bytes_per_second=120 << 20)
        yield machine


def drill(bed: Virtual, config: str) -> tuple[int, dict[str, Any]]:
    rest(bed)
    bed.write(CONFIG, config)
    done = bed.run("vllm-safe drill --seconds 45 --json", check=False, timeout=600)
    return done.returncode, json.loads(done.stdout)


def rest(bed: Virtual) -> None:
    """Wait until next to nothing waited for memory in the last ten seconds."""
    bed.wait_for("rest", lambda: float(bed.read("/proc/pressure/memory").split("avg10=")[1].split()[0]) < 2, timeout=120, pause=1)


def begin(bed: Virtual) -> None:
    """Start a drill in the background, and wait until its hog has more memory than it could have by chance."""
    rest(bed)
    script = "vllm-safe drill --seconds 40 --json & echo $! >/root/drill.pid; wait $!; echo $? >/root/drill.code"
    bed.run(f"rm -f /root/drill.*; setsid sh -c '{script}' >/root/drill.out 2>&1 &")
    bed.wait_for("the hog is there", lambda: int(bed.read(f"{HOG}/memory.current")) > 100 << 20, timeout=FILLED, pause=1)


def is_gone(bed: Virtual) -> bool:
    return not bed.exists(HOG) and bed.run(["pgrep", "-f", "drill/(hog|heartbeat).py"], check=False).returncode != 0


@pytest.mark.vm
class TestDrill:
    def test_it_passes_with_the_protection_on(self, bed: Virtual) -> None:
        for _ in range(TRIES):
            code, answer = drill(bed, ON)
            if code == 0:
                break
        assert (code, answer["result"], answer["failed"]) == (0, "PASS", []), answer
        assert answer["hog"]["swap"] > 50 << 20
        lines = {line["what"]: line for line in answer["lines"]}
        for what in ("login: worst", "ssh to localhost: worst", "ssh to localhost: median"):
            assert lines[what]["idle"] > 0, answer
            assert lines[what]["drill"] > 0, answer
        said = bed.journal("vllm-safe-guard.service", Path(HOG).name, lines=1000)
        assert 0 <= said.find("Started vllm-safe-guard.service") < said.find("Started vllm-safe-drill.service"), said
        assert is_gone(bed)

    def test_killed_it_leaves_nothing(self, bed: Virtual) -> None:
        begin(bed)
        assert int(bed.read(f"{HOG}/cgroup.procs").split()[0]) > 0
        assert bed.properties("vllm-safe-guard.service", "ActiveState")["ActiveState"] == "active"
        pid = bed.read(f"{HOG}/cgroup.procs").split()[-1]
        assert bed.read(f"/proc/{pid}/oom_score_adj").strip() == "1000"
        assert bed.out(f"stat -c %U /proc/{pid}") == "vllm"
        second = bed.run("vllm-safe drill", check=False)
        assert (second.returncode, "another one is running" in second.stderr) == (2, True)
        bed.run("pkill -9 -F /root/drill.pid")
        bed.wait_for("the hog has gone", lambda: is_gone(bed), timeout=PATIENCE)
        assert bed.failed_units() == ""

    def test_told_to_end_it_ends_in_order(self, bed: Virtual) -> None:
        begin(bed)
        bed.run("pkill -TERM -F /root/drill.pid")
        bed.wait_for("the hog has gone", lambda: is_gone(bed), timeout=PATIENCE)
        bed.wait_for("the drill has ended", lambda: bed.run("test -s /root/drill.code", check=False).returncode == 0, timeout=PATIENCE)
        assert bed.read("/root/drill.code").strip() == "130"
        assert "interrupted" in bed.read("/root/drill.out")
        assert bed.failed_units() == ""

    def test_what_runs_in_a_models_place_ends_it_and_keeps_it_from_starting(self, bed: Virtual) -> None:
        begin(bed)
        bed.run("systemd-run --unit=other --slice=vllm.slice sleep infinity")
        try:
            bed.wait_for("the hog has gone", lambda: is_gone(bed), timeout=PATIENCE)
            bed.wait_for("the drill says why", lambda: "other.service was started" in bed.read("/root/drill.out"), timeout=PATIENCE)
            refused = bed.run("vllm-safe drill", check=False)
            assert (refused.returncode, "other.service is running" in refused.stderr) == (2, True)
            assert bed.properties("other.service", "ActiveState")["ActiveState"] == "active"
        finally:
            bed.run("systemctl stop other")

    def test_it_fails_with_the_protection_off(self, bed: Virtual) -> None:
        """Last: it takes this machine a while to become itself again."""
        code, answer = drill(bed, OFF)
        assert (code, answer["result"]) == (1, "FAIL"), answer
        assert any(
            name.startswith(("login: ", "ssh to localhost: ")) or name.endswith("stalled for memory") for name in answer["failed"]
        ), answer
        assert "time with the hog near its limit" not in answer["failed"]


@pytest.mark.nspawn
def test_no_drill_where_no_limit_would_hold_the_hog(nspawn_bed: Nspawn, deb: Path) -> None:
    nspawn_bed.install(deb)
    nspawn_bed.write(CONFIG, "swap: {size: none}\nmodels: {}\n")
    refused = nspawn_bed.run("vllm-safe drill", check=False)
    assert refused.returncode == 2
    assert "the cgroup memory controller is not available" in refused.stderr
    said = nspawn_bed.out("vllm-safe drill --dry-run")
    assert "OOMScoreAdjust=1000" in said
    assert all(line.startswith("would ") for line in said.splitlines())
