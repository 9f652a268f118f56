"""How far a start is, and when it has stopped moving: the real vLLM's phases, and disks that are slow and dead."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.beds import engine
from tests.beds.machine import Machine
from tests.beds.nspawn import Nspawn
from tests.beds.vm import Virtual
from vllm_safe.common.sizes import MIB
from vllm_safe.contract.state_file import PHASES

FAKE = Path(__file__).parents[1] / "fakes" / "server.py"
STATE = "/run/vllm-safe/state/demo.json"
WEIGHTS = 24 * MIB
CONFIG = """\
swap: {size: none}
models:
  demo:
    command: [python3, /opt/fake/server.py, "8000", --read, /srv/weights]
    stall_timeout: 15s
    stop_grace: 2s
"""


def _state(bed: Machine) -> dict[str, Any]:
    try:
        return dict(json.loads(bed.run(["cat", STATE], check=False).stdout))
    except ValueError:
        return {}


def _status(bed: Machine) -> dict[str, str]:
    return bed.properties("vllm@demo.service", "ActiveState", "SubState", "StatusText")


@pytest.mark.nspawn
def test_the_phases_of_the_real_vllm_are_told_in_order(nspawn_serving: Nspawn) -> None:
    bed = nspawn_serving
    # Each process imports vLLM, as when it is installed: the phase lasts long enough to be seen.
    bed.write("/etc/vllm-safe/config.yaml", engine.CONFIG + "      VLLM_WORKER_MULTIPROC_METHOD: spawn\n")
    seen: list[str] = []
    texts = []
    bed.run("systemctl start --no-block vllm@demo")
    until = time.monotonic() + 300
    while time.monotonic() < until and (not seen or seen[-1] != "ready"):
        state, status = _state(bed), _status(bed)
        if state and state["phase"] not in seen:
            seen.append(state["phase"])
        texts.append(status["StatusText"])
        assert status["SubState"] in {"start", "running", "dead", "start-pre"}
        time.sleep(0.3)
    bed.run("systemctl stop vllm@demo")
    assert seen[-1] == "ready", texts[-1]
    assert seen == sorted(seen, key=PHASES.index)
    assert {"importing", "loading"} <= set(seen)
    assert any("importing" in text for text in texts)
    assert any("ready" in text for text in texts)


@pytest.fixture(scope="module")
def reading(vm_installed: Virtual) -> Virtual:
    """Boot a machine in which a server loads a file from the disk before it answers."""
    bed = vm_installed
    bed.write("/opt/fake/server.py", FAKE.read_text())
    bed.write("/etc/vllm-safe/config.yaml", CONFIG)
    bed.run(f"head -c {WEIGHTS} /dev/urandom > /srv/weights && sync", timeout=120)
    bed.run("systemctl start vllm@demo && systemctl stop vllm@demo", timeout=180)  # what this needs is in memory now
    return bed


@pytest.fixture(autouse=True)
def _fast_again(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "reading" in request.fixturenames:
        bed: Virtual = request.getfixturevalue("reading")
        bed.throttle()
        bed.run("systemctl stop vllm@demo; systemctl reset-failed vllm@demo", check=False, timeout=120)


def _forget_the_file(bed: Virtual) -> None:
    """Out of the page cache: this file alone, all else would have to be read again from the slow disk."""
    bed.run("dd of=/srv/weights oflag=nocache conv=notrunc,fdatasync count=0 status=none")


@pytest.mark.vm
def test_a_disk_of_one_megabyte_a_second_is_no_stall(reading: Virtual) -> None:
    bed = reading
    _forget_the_file(bed)
    bed.throttle(bytes_per_second=MIB)
    start = time.monotonic()
    bed.run("systemctl start vllm@demo", timeout=240)
    assert time.monotonic() - start > 15  # else nothing was shown
    assert _status(bed)["SubState"] == "running"


@pytest.mark.vm
def test_a_dead_disk_is_a_stall_and_says_what_stood_still(reading: Virtual) -> None:
    bed = reading
    _forget_the_file(bed)
    bed.throttle(bytes_per_second=MIB)
    bed.run("systemctl start --no-block vllm@demo")
    bed.wait_for("it reads", lambda: _state(bed).get("phase") in {"starting", "loading"}, timeout=180)
    time.sleep(6)
    bed.throttle(iops=1, bytes_per_second=1)
    time.sleep(35)  # nothing can be asked meanwhile: what asks may have to be read, too
    bed.throttle()
    said = re.compile(r"no progress for (?:1[5-9]|2\d) s")  # 15 s, and what a slow machine adds
    bed.wait_for("it is over", lambda: said.search(bed.journal("vllm@demo.service")) is not None, timeout=60)
    journal = bed.journal("vllm@demo.service")
    assert re.search(r"\(stall_timeout\): [0-9.]+ (?:B|KiB|MiB) read, .*no new output since", journal)
