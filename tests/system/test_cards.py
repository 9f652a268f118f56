"""Kernel messages about a card, from the log to `vllm-safe why`: the real ring, journald and recorder, and cards that are not there.

What root writes into /dev/kmsg is a line of the kernel to journald, less the word before it.
"""

from __future__ import annotations

import json
import shlex
import time
from typing import Any

import pytest

from tests.beds.vm import Virtual
from vllm_safe.record.kill_evidence import UNREAD

pytestmark = pytest.mark.vm

DRIVER = "/opt/driver"  # in place of /proc/driver, where the recorder looks
DROP_IN = "/etc/systemd/system/vllm-safe-record@.service.d/cards.conf"
# Goes on until /opt/go is there, then ends as a server whose card fails.
SERVER = """
import os, sys, time
while not os.path.exists("/opt/go"):
    time.sleep(0.5)
sys.exit("torch.AcceleratorError: CUDA error: unspecified launch failure")
"""
CONFIG = """\
swap: {size: none}
guard: {enabled: no}
models:
  demo:
    command: [python3, /opt/server.py]
    port: 8001
"""


@pytest.fixture(scope="module")
def bed(vm_installed: Virtual) -> Virtual:
    """Boot a machine whose recorder sees two GPUs listed, but no driver for them."""
    vm_installed.write("/opt/server.py", SERVER)
    vm_installed.write("/etc/vllm-safe/config.yaml", CONFIG)
    for card in ("0000:01:00.0", "0000:02:00.0"):
        vm_installed.write(f"{DRIVER}/nvidia/gpus/{card}/information", "Model: \t\t NVIDIA GeForce RTX 3060\n")
    vm_installed.write(DROP_IN, f"[Service]\nBindReadOnlyPaths={DRIVER}:/proc/driver\n")
    vm_installed.run("systemctl daemon-reload", timeout=120)
    return vm_installed


def _ended(bed: Virtual, *said: str) -> dict[str, Any]:
    """Why a start ended during which the kernel said this; "{pid}" is the model's process."""
    bed.run("rm -f /opt/go; systemctl start --no-block vllm@demo")
    bed.wait_for("it runs", lambda: bed.run("pgrep --euid vllm --full /opt/server.py", check=False).returncode == 0, timeout=120)
    pid = bed.out("pgrep --euid vllm --full /opt/server.py")
    bed.wait_for("it is recorded", lambda: '"running"' in bed.run("vllm-safe why demo --json", check=False).stdout, timeout=60)
    time.sleep(5)  # its processes are looked at each second
    for line in said:
        bed.run(f"echo {shlex.quote('kernel: ' + line.format(pid=pid))} > /dev/kmsg")
    bed.run("touch /opt/go")

    found: list[str] = []

    def is_over() -> bool:
        """Whether the end of the first run since the previous test is recorded; the run is then in `found`."""
        runs = json.loads(bed.run("vllm-safe why demo --list --json", check=False).stdout or "[]")
        ended = [run for run in reversed(runs) if run["run"] not in KNOWN and run["code"] != "running"]
        found[:] = [run["run"] for run in ended if UNREAD not in _texts(run)]
        return bool(found)

    bed.wait_for("its end", is_over, timeout=180)
    bed.run("systemctl stop vllm@demo; systemctl reset-failed 'vllm@*'", check=False)
    KNOWN.update(run["run"] for run in json.loads(bed.out("vllm-safe why demo --list --json")))
    return dict(json.loads(bed.out(["vllm-safe", "why", "demo", "--run", found[0], "--json"])))


KNOWN: set[str] = set()  # runs of tests before


def _texts(verdict: dict[str, Any]) -> str:
    return "\n".join(fact["text"] for fact in verdict["evidence"])


def test_a_card_that_fell_off_the_bus_goes_before_what_the_server_said(bed: Virtual) -> None:
    xid = "NVRM: Xid (PCI:0000:02:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus."
    verdict = _ended(bed, xid, "NVRM: GPU 0000:02:00.0: GPU has fallen off the bus.")
    assert verdict["code"] == "gpu-fault"
    assert "GPU 1 (NVIDIA GeForce RTX 3060, 0000:02:00): it has fallen off the bus" in verdict["sentence"]
    assert xid in _texts(verdict)
    assert "power the machine off and on" in verdict["hint"]


def test_what_its_own_program_did_is_told_from_what_another_did(bed: Virtual) -> None:
    other = "NVRM: Xid (PCI:0000:01:00): 13, pid=1, name=systemd, Graphics Exception: ESR 0x57c730=0xc04000b"
    own = "NVRM: Xid (PCI:0000:01:00): 31, pid={pid}, name=python3, Ch 00000008, intr 00000000. MMU Fault: ENGINE GRAPHICS"
    verdict = _ended(bed, other, own)
    assert verdict["code"] == "gpu-program-fault"
    assert "(Xid 31)" in verdict["sentence"]
    assert "Xid (PCI:0000:01:00): 13" not in _texts(verdict)
