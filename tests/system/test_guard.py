"""The guard in a real kernel: each step provoked and seen, everything else alive through it, and each way in which it could be lost."""

from __future__ import annotations

import itertools
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.beds.machine import BedError
from tests.beds.vm import Saved, Shape, Virtual

pytestmark = pytest.mark.vm

# Serves, and has children that touch more memory than there is, at random.
HOG = """
import http.server, mmap, os, random, sys

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()

for _ in range(2):
    if os.fork() == 0:
        pages = int(sys.argv[2]) * 256
        memory = mmap.mmap(-1, pages * 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        while True:
            memory[random.randrange(pages) * 4096] = 1
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
VICTIM = Path("tests/fakes/victim.py")  # with a MemoryHigh= of its own it waits for memory: the OS suffers, as much as a test needs
CONFIG = """
swap: {{size: none}}
guard: {{{guard}}}
models:
  hog:
    command: [/usr/bin/python3, /opt/hog.py, '8000', '450']
    port: 8000
    health: http://127.0.0.1:8000/
"""
SPARE = "kill_pressure: 100%, kill_after: 10min"
NEVER = f"freeze_pressure: 100%, freeze_after: 9min, {SPARE}"
LEAVE = f"squeeze_pressure: 100%, squeeze_after: 8min, {NEVER}"
PATIENT = f"squeeze_pressure: 50%, squeeze_after: 10s, {NEVER}"  # in emulation our own commands make the OS wait, a little
SQUEEZE = f"squeeze_pressure: 2%, {NEVER}"
FREEZE = f"squeeze_pressure: 2%, squeeze_after: 1s, freeze_pressure: 2%, freeze_after: 2s, freeze_time: 2s, {SPARE}"
KILL = "squeeze_pressure: 1%, squeeze_after: 1s, freeze_pressure: 1%, freeze_after: 2s, freeze_time: 1s, kill_pressure: 1%, kill_after: 6s"
LOOKS = """
import pathlib, sys, time
for look in range(6):
    print(pathlib.Path("/proc", sys.argv[1], "status").read_text())
    time.sleep(12)
"""
GROUP = "/sys/fs/cgroup/vllm.slice/vllm@hog.service"
EVENTS = "/run/vllm-safe/guard/hog.jsonl"
GUARD = "vllm-safe-guard.service"
HARD_DISK = {"iops": 150, "bytes_per_second": 120 << 20}


def configure(bed: Virtual, guard: str) -> None:
    """Other settings, which the running guard takes within ten seconds."""
    bed.write("/etc/vllm-safe/config.yaml", CONFIG.format(guard=guard))
    bed.run("vllm-safe apply", timeout=200)


def prepare(bed: Virtual) -> None:
    bed.write("/opt/hog.py", HOG)
    bed.put(VICTIM, "/opt/victim.py")
    bed.run("fallocate -l 3G /swapfile && chmod 600 /swapfile && mkswap /swapfile && swapon /swapfile")
    bed.run("systemd-run --unit=innocent sleep infinity")


@pytest.fixture(scope="module")
def bed(installed: Saved) -> Iterator[Virtual]:
    """Start a model that swaps, on a disk as slow as a hard disk."""
    with Virtual(saved=installed) as machine:
        prepare(machine)
        configure(machine, LEAVE)
        machine.run("systemctl start vllm@hog", timeout=300)
        machine.wait_for("it swaps", lambda: int(machine.read(f"{GROUP}/memory.swap.current")) > 100 << 20, timeout=200, pause=2)
        machine.throttle(**HARD_DISK)
        yield machine


def events(bed: Virtual) -> list[dict[str, Any]]:
    text = bed.read(EVENTS) if bed.exists(EVENTS) else ""
    return [json.loads(line) for line in text.splitlines()]


def acts(bed: Virtual) -> list[str]:
    return [event["act"] for event in events(bed)]


def value(bed: Virtual, path: str) -> str:
    return bed.read(path).strip()


def classes(bed: Virtual) -> set[str]:
    """Return the I/O classes of the model's processes."""
    text = bed.out(f"for process in $(cat {GROUP}/cgroup.procs); do ionice -p $process; done")
    return {line.partition(":")[0] for line in text.splitlines()}


def fields(status: str) -> dict[str, str]:
    """Return the lines of a /proc/PID/status by their names."""
    return dict(line.split(":", 1) for line in status.splitlines())


def must_say(unit: dict[str, str], text: str) -> bool:
    """Return whether the status of a unit has a text. Raises BedError with its state, which the wait for it then shows."""
    if text not in unit["StatusText"]:
        raise BedError(str(unit))
    return True


def suffer(bed: Virtual) -> None:
    bed.run(
        "systemctl is-active -q victim || systemd-run --collect --unit=victim -p MemoryHigh=30M python3 /opt/victim.py",
        timeout=200,
    )


def status_text(bed: Virtual) -> str:
    return bed.properties(GUARD, "StatusText")["StatusText"]


def pid_of(bed: Virtual) -> str:
    return bed.properties(GUARD, "MainPID")["MainPID"]


def test_it_runs_with_the_model_small_and_still(bed: Virtual) -> None:
    bed.wait_for("it watches", lambda: status_text(bed) == "watching", timeout=60, pause=1)
    # In one process that reads nothing in between: our own commands are pressure, with this disk. The OS may have some of its own, too.
    looks = [fields(text) for text in bed.out(["python3", "-c", LOOKS, pid_of(bed)]).split("\n\n")]
    assert int(looks[0]["VmRSS"].split()[0]) <= 12 << 10
    assert int(looks[0]["VmLck"].split()[0]) > 0
    switches = [int(look["voluntary_ctxt_switches"]) for look in looks]
    assert min(after - before for before, after in itertools.pairwise(switches)) <= 5  # one each ten seconds


def test_a_model_that_swaps_while_the_os_is_well_is_left_alone(bed: Virtual) -> None:
    swapped = int(dict(line.split() for line in bed.read(f"{GROUP}/memory.stat").splitlines())["workingset_refault_anon"])
    configure(bed, PATIENT)
    bed.run("sleep 20")
    later = int(dict(line.split() for line in bed.read(f"{GROUP}/memory.stat").splitlines())["workingset_refault_anon"])
    assert later > swapped
    assert acts(bed) == []


def test_a_jump_of_the_clock_and_a_suspend_are_no_pressure(bed: Virtual) -> None:
    before = bed.properties(GUARD, "MainPID", "NRestarts")
    now = int(bed.out("date +%s"))
    bed.run(f"date -s @{now + 86400} && sleep 3 && date -s @{now - 86400} && sleep 3 && date -s @{now + 6}")
    # The share's device does not wake up again, and whoever looks into it waits for ever: systemd at its next reload, for 90 s.
    bed.run("systemctl stop bed.automount && ! mountpoint -q /bed")
    bed.suspend(8)
    slept = "import time; print(time.clock_gettime(time.CLOCK_BOOTTIME) - time.monotonic())"
    assert float(bed.out(["python3", "-c", slept])) > 5  # else nothing was shown
    bed.run("sleep 12")  # a slow look of the guard's
    assert (bed.properties(GUARD, "MainPID", "NRestarts"), status_text(bed)) == (before, "watching")
    assert acts(bed) == []


def test_the_least_step_first_and_shown_where_a_person_looks(bed: Virtual) -> None:
    configure(bed, SQUEEZE)
    bed.wait_for("the guard knows", lambda: "new settings" in bed.journal(GUARD), timeout=60, pause=1)
    suffer(bed)
    bed.wait_for("the model is squeezed", lambda: "squeeze" in acts(bed), timeout=120, pause=1)
    assert [value(bed, f"{folder}/cpu.weight") for folder in (GROUP, "/sys/fs/cgroup/vllm.slice")] == ["1", "1"]
    assert classes(bed) == {"idle"}
    assert "squeezed to the lowest CPU and I/O weights" in bed.out("systemctl status --no-pager -n 200 vllm@hog")
    event = next(event for event in events(bed) if event["act"] == "squeeze")
    assert max(event["readings"].values()) > 0  # of memory or of the disk
    assert "squeezed" in status_text(bed)


def test_what_systemd_writes_is_overwritten_and_kept_for_later(bed: Virtual) -> None:
    bed.run("systemctl daemon-reload && systemctl set-property --runtime vllm.slice CPUWeight=12 && systemctl daemon-reexec", timeout=200)
    bed.wait_for("the share is the least again", lambda: value(bed, "/sys/fs/cgroup/vllm.slice/cpu.weight") == "1", timeout=60)


def test_a_unit_that_vanishes_is_nothing_to_it(bed: Virtual) -> None:
    before = bed.properties(GUARD, "MainPID", "NRestarts")
    for number in range(3):
        bed.run(f"systemd-run --wait --collect --slice=vllm.slice --unit=vanishing{number} sleep 4", timeout=200)
    bed.run("sleep 3")
    assert bed.properties(GUARD, "MainPID", "NRestarts") == before


def test_killed_while_it_holds_a_model_it_comes_back_and_lets_go(bed: Virtual) -> None:
    bed.run("systemctl stop victim", check=False, timeout=200)  # it may have ended by its own limit
    bed.run(f"systemctl kill -s STOP {GUARD}", check=False)
    mark = f"import os; os.setxattr('{GROUP}', 'user.vllm-safe.guard', os.getxattr('{GROUP}', 'user.vllm-safe.guard') + b' frozen=1')"
    bed.run(["python3", "-c", mark])
    bed.run(f"echo 1 > {GROUP}/cgroup.freeze")
    before = pid_of(bed)
    bed.run(f"systemctl kill -s KILL {GUARD}", timeout=100)
    bed.wait_for("another guard runs", lambda: pid_of(bed) not in {before, "0"}, timeout=60)
    bed.wait_for("the model runs", lambda: value(bed, f"{GROUP}/cgroup.freeze") == "0", timeout=60)
    bed.wait_for("it has its share", lambda: value(bed, f"{GROUP}/cpu.weight") == "10", timeout=60)
    assert value(bed, "/sys/fs/cgroup/vllm.slice/cpu.weight") == "12"
    assert "idle" not in classes(bed)


def test_a_freeze_is_short_and_the_machine_is_alive(bed: Virtual) -> None:
    before = bed.properties("innocent.service", "MainPID")
    configure(bed, FREEZE)
    suffer(bed)
    bed.wait_for("the model was frozen and thawed", lambda: "thaw" in acts(bed), timeout=180, pause=1)
    frozen, thawed = (next(event["time"] for event in events(bed) if event["act"] == act) for act in ("freeze", "thaw"))
    assert thawed - frozen < 10
    login = subprocess.run(bed.ssh("id", "-un"), check=True, capture_output=True, text=True, timeout=120)
    assert login.stdout == "root\n"
    assert bed.properties("innocent.service", "MainPID") == before
    assert bed.out("systemctl is-active ssh systemd-journald innocent vllm@hog").split() == ["active"] * 4


def test_a_mistake_in_the_configuration_leaves_the_last_good_settings(bed: Virtual) -> None:
    plan = value(bed, "/run/vllm-safe/guard.plan")
    bed.write("/etc/vllm-safe/config.yaml", "nonsense: 1\n")
    bed.run("vllm-safe apply", check=False, timeout=200)
    bed.wait_for("the guard says so", lambda: "the last valid settings are in force: " in status_text(bed), timeout=90, pause=1)
    assert [line for line in plan.splitlines() if "note" not in line] == [
        line for line in value(bed, "/run/vllm-safe/guard.plan").splitlines() if "note" not in line
    ]


def test_the_last_resort_is_the_whole_unit_and_nothing_else(bed: Virtual) -> None:
    suffer(bed)
    before = bed.properties("innocent.service", "MainPID")
    victim = bed.properties("victim.service", "MainPID")
    restarts = int(bed.properties(GUARD, "NRestarts")["NRestarts"])
    # Else the model starts again after 30 s, with another status, and is killed again.
    bed.write("/run/systemd/system/vllm@hog.service.d/later.conf", "[Service]\nRestartSec=1h\n")
    bed.run("systemctl daemon-reload", timeout=200)
    configure(bed, KILL)
    bed.wait_for("the model is killed", lambda: "kill" in acts(bed), timeout=240, pause=1)
    why = "killed by the vllm-safe guard"
    bed.wait_for("its unit says so", lambda: must_say(bed.model("hog"), why), timeout=180, pause=1)
    assert why in bed.journal("vllm@hog.service")
    bed.wait_for(
        "why knows",
        lambda: bed.run("vllm-safe why hog", check=False).stdout.startswith("hog was killed by the vllm-safe guard"),
        timeout=180,
    )
    assert acts(bed).count("kill") == 1
    assert int(bed.properties(GUARD, "NRestarts")["NRestarts"]) <= restarts  # none for the cgroup that went
    assert bed.properties("innocent.service", "MainPID") == before
    assert bed.properties("victim.service", "MainPID") == victim
    assert bed.out("systemctl is-active ssh systemd-journald innocent").split() == ["active"] * 3


def test_it_ends_with_the_last_model(bed: Virtual) -> None:
    bed.run("systemctl stop victim vllm@hog; systemctl reset-failed", check=False, timeout=200)
    bed.wait_for("it ended", lambda: bed.properties(GUARD, "ActiveState")["ActiveState"] == "inactive", timeout=180)


def test_without_pressure_files_it_goes_by_faults_and_says_so(installed: Saved) -> None:
    with Virtual(Shape(kernel_arguments="psi=0"), disk=installed.disk) as bed:
        prepare(bed)
        configure(bed, f"squeeze_pressure: 1%, {NEVER}")
        bed.run("systemctl start vllm@hog", timeout=300)
        assert "psi=0" in status_text(bed)
        suffer(bed)
        bed.wait_for("the model is squeezed", lambda: "squeeze" in acts(bed), timeout=240, pause=2)
        (event, *_) = events(bed)
        assert "an estimated" in event["text"]


def test_with_cgroups_of_version_1_it_refuses_and_says_what_to_do(installed: Saved) -> None:
    with Virtual(Shape(kernel_arguments="systemd.unified_cgroup_hierarchy=0"), disk=installed.disk) as bed:
        prepare(bed)
        bed.write("/etc/vllm-safe/config.yaml", CONFIG.format(guard=LEAVE))
        way_out = "systemd.unified_cgroup_hierarchy=1"
        bed.run(f"systemctl start {GUARD}", check=False, timeout=200)
        bed.wait_for("it gave up", lambda: bed.properties(GUARD, "ActiveState")["ActiveState"] == "failed", timeout=60)
        assert way_out in status_text(bed)
        assert bed.properties(GUARD, "ExecMainStatus", "NRestarts") == {"ExecMainStatus": "78", "NRestarts": "0"}
        assert bed.run("systemctl start vllm@hog", check=False, timeout=200).returncode != 0
        assert "cgroup v2" in bed.properties("vllm@hog.service", "StatusText")["StatusText"]
        assert way_out in bed.run("vllm-safe check", check=False).stdout
