"""Servers that misbehave in every way we know, under the real systemd: each ends in time, with its reason, and nothing is left."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.beds.nspawn import Nspawn

pytestmark = pytest.mark.nspawn

FAKE = Path(__file__).parents[1] / "fakes" / "server.py"
SMALL_DISK = "/var/cache/vllm-safe"  # a tmpfs of 2 MiB
STATES = "/run/vllm-safe/state"  # another one
# vllm/distributed/device_communicators/shm_broadcast.py:108
WAITING = "No available shared memory broadcast block found in 3 seconds. This typically happens when some processes are hanging"
SERVERS = {  # name -> (what the fake server is told, other settings)
    "never": ("--never --say importing", "start_timeout: 6s, stop_grace: 2s"),
    "asleep": ("--never", "stall_timeout: 4s, stop_grace: 2s"),
    "spins": (f"--never --spin --again 3 --say '{WAITING}'", "stall_timeout: 8s, stop_grace: 2s"),
    "unwell": ("--status 503", "start_timeout: 6s, stop_grace: 2s"),
    "mute": ("--mute", "start_timeout: 8s, stop_grace: 2s"),
    "silent": ("--silent 3", "hang_timeout: 6s, stop_grace: 2s"),
    "quits": ("--exit 0", ""),
    "detaches": ("--detach --load 2", ""),
    "fills": (f"--fill {SMALL_DISK}/crumbs", ""),
    "spills": (f"--spill {STATES}/crumbs", ""),
    "flood": (f"--print {1 << 30} --line 8000", ""),
    "deaf": ("--deaf --daemon", "stop_grace: 2s"),
}
PORTS = {name: 8001 + number for number, name in enumerate(SERVERS)}
# Each process of a server first leaves files where vLLM leaves some.
LITTER = "touch /dev/shm/psm_litter /tmp/vllm_dist_litter /run/vllm/$0/socket; exec python3 /opt/fake/server.py"

ENDS = [  # name, the cause in its state, and what STATUS= and the journal say; seconds until it is over at the latest
    ("never", "start-timeout", "not ready within 6 s", 6 + 2 + 15),
    ("asleep", "stall", "no new output since", 4 + 2 + 20),
    ("spins", "stall", "its processes wait for each other", 8 + 2 + 30),
    ("unwell", "start-timeout", "returns HTTP 503", 6 + 2 + 15),
    ("mute", "start-timeout", "does not answer within", 8 + 2 + 15),
    ("silent", "hang", "does not answer within 30 s", 3 + 30 + 6 + 2 + 20),  # health has 30 s to answer, as slow machines need
    ("quits", "exited", "exit status 0", 15),
    ("detaches", "exited", "exit status 0", 15),
    ("fills", "exited", "No space left on device", 15),
]


@pytest.fixture(scope="module")
def bed(nspawn_installed: Nspawn) -> Nspawn:
    bed = nspawn_installed
    bed.write("/opt/fake/server.py", FAKE.read_text())
    lines = ["swap: {size: none}", "models:"]
    for name, (told, more) in SERVERS.items():
        command = f'[/bin/sh, -c, "{LITTER} {PORTS[name]} {told}", {name}]'
        lines += [f"  {name}: {{command: {command}, port: {PORTS[name]}{', ' if more else ''}{more}}}"]
    bed.write("/etc/vllm-safe/config.yaml", "\n".join(lines) + "\n")
    # Instead of 30 s: what a model has left behind is looked at before it starts again, on the slowest machine too.
    bed.write("/run/systemd/system/vllm@.service.d/later.conf", "[Service]\nRestartSec=10min\n")
    bed.run("systemctl daemon-reload")
    for folder in (SMALL_DISK, STATES):
        bed.run(f"mount -t tmpfs -o size=2M,uid=vllm,gid=vllm,mode=0755 tmpfs {folder}")
    return bed


@pytest.fixture(autouse=True)
def _tidy(bed: Nspawn) -> Iterator[None]:
    """Whatever a test did: when its models are stopped nothing is left."""
    yield
    bed.run("systemctl stop 'vllm@*' && systemctl reset-failed 'vllm@*'", check=False)
    bed.run(f"rm -f {SMALL_DISK}/crumbs {STATES}/crumbs")
    _nothing_is_left(bed)


def _nothing_is_left(bed: Nspawn) -> None:
    find = "find /dev/shm /tmp /run/vllm /run/credentials /var/tmp -mindepth 1 \\( -user vllm -o -path '*vllm@*' -o -path '*psm_*' \\)"
    groups = "ls -d /sys/fs/cgroup/vllm.slice/vllm@* 2>/dev/null"
    left = f"pgrep --list-full --uid vllm; {find} 2>/dev/null; {groups}; ss -ltnH 'sport >= 8001'; true"
    bed.wait_for("systemd removes the last of its folders", lambda: bed.out(left) == "", timeout=10)


def _state(bed: Nspawn, name: str) -> dict[str, Any]:
    return dict(json.loads(bed.read(f"{STATES}/{name}.json")))


@pytest.mark.parametrize(("name", "cause", "said", "within"), ENDS, ids=[end[0] for end in ENDS])
def test_it_ends_and_says_why_and_leaves_nothing(bed: Nspawn, name: str, cause: str, said: str, within: int) -> None:
    start = time.monotonic()
    bed.run(["systemctl", "start", "--no-block", f"vllm@{name}"])
    bed.wait_for("it has ended", lambda: bed.model(name)["SubState"] in {"auto-restart", "failed"}, timeout=within)
    assert time.monotonic() - start < within  # what is promised, with room for a slow machine
    assert said in bed.model(name)["StatusText"]
    assert said in bed.journal(f"vllm@{name}")
    state = _state(bed, name)
    assert (state["phase"], state["cause"]) == ("ended", cause)
    assert said in state["reason"] + state["text"]
    _nothing_is_left(bed)


def test_who_spins_in_vain_is_told_what_helps_and_not_to_wait_longer(bed: Nspawn) -> None:
    bed.run(["systemctl", "start", "--no-block", "vllm@spins"])
    bed.wait_for("it has ended", lambda: bed.model("spins")["SubState"] in {"auto-restart", "failed"}, timeout=40)
    bed.run("systemctl stop vllm@spins")
    bed.wait_for("it is recorded", lambda: json.loads(bed.out("vllm-safe why spins --json"))["code"] == "stall", timeout=30)
    said = json.loads(bed.out("vllm-safe why spins --json"))
    assert "without progress" in said["sentence"]
    assert not [change for change in said["changes"] if "timeout" in change["path"]]
    assert "A longer timeout does not help" in said["hint"]
    (seconds,) = re.findall(r"([\d.]+) s of CPU time, no new output", " ".join(fact["text"] for fact in said["evidence"]))
    # 0.5 s, and 0.03 s more for each second and process, are progress otherwise (launch/load_progress.py); a busy host gave it 1.4 of 8 s.
    assert float(seconds) > 1, "it used more of a processor than counts as progress: else nothing was shown"


def test_a_gigabyte_of_log_harms_nobody(bed: Nspawn) -> None:
    bed.run("systemctl start --no-block vllm@deaf")
    bed.run("systemctl start vllm@flood", timeout=300)
    main = bed.model("flood")["MainPID"]
    assert int(bed.read(f"/proc/{main}/status").partition("VmHWM:")[2].split()[0]) <= 20 * 1024  # kB
    bed.out(f"curl --fail --silent --show-error --max-time 5 http://127.0.0.1:{PORTS['deaf']}/health")
    assert (bed.model("flood")["SubState"], bed.model("deaf")["SubState"]) == ("running", "running")
    assert len(_state(bed, "flood")["log"]) <= 200


def test_a_full_folder_of_states_harms_nobody(bed: Nspawn) -> None:
    bed.run("systemctl start vllm@spills", timeout=60)
    assert bed.model("spills")["StatusText"].startswith("ready")
    bed.run("systemctl stop vllm@spills", timeout=60)
    assert bed.model("spills")["ActiveState"] == "inactive"


def test_a_deaf_one_and_its_daemon_end_with_the_grace(bed: Nspawn) -> None:
    bed.run("systemctl start vllm@deaf")
    start = time.monotonic()
    bed.run("systemctl stop vllm@deaf")
    assert time.monotonic() - start < 2 + 5  # the bound that is promised, not a measurement
    _nothing_is_left(bed)
    assert _state(bed, "deaf")["cause"] == "stopped"
