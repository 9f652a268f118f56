"""What the kernel says of a card, from its log to `vllm-safe why`: the real ring, journald and recorder, and cards that are not there.

What root writes into /dev/kmsg is a line of the kernel to journald, less the word before it.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from tests.beds.vm import Virtual

pytestmark = pytest.mark.vm

FAKE = Path(__file__).parents[1] / "fakes/server.py"
CARDS = "/proc/driver/nvidia/gpus"
CONFIG = """\
swap: {size: none}
guard: {enabled: no}
models:
  demo:
    command: [/bin/sh, -c, "exec python3 /opt/fake.py 8001 --load 12 --say 'torch.AcceleratorError: CUDA error: unknown' --exit 1"]
    port: 8001
"""


@pytest.fixture(scope="module")
def bed(vm_installed: Virtual) -> Virtual:
    """A machine whose kernel lists two cards, and has no driver for them."""
    vm_installed.write("/opt/fake.py", FAKE.read_text())
    vm_installed.write("/etc/vllm-safe/config.yaml", CONFIG)
    vm_installed.run(f"mount -t tmpfs tmpfs /proc/driver && mkdir -p {CARDS}/0000:01:00.0 {CARDS}/0000:02:00.0")
    for card in ("0000:01:00.0", "0000:02:00.0"):
        vm_installed.write(f"{CARDS}/{card}/information", "Model: \t\t NVIDIA GeForce RTX 3060\n")
    return vm_installed


def _ended(bed: Virtual, *said: str) -> dict[str, Any]:
    """Why a start ended during which the kernel said this; "{pid}" is a process of the model."""
    bed.run("systemctl start --no-block vllm@demo")
    pids = "cat /sys/fs/cgroup/vllm.slice/vllm@demo.service/cgroup.procs"
    bed.wait_for("the recorder has seen it", lambda: len(bed.run(pids, check=False).stdout.split()) >= 2, timeout=120)
    pid = bed.out(pids).split()[-1]
    bed.wait_for("a sample", lambda: '"code": "running"' in bed.run("vllm-safe why demo --json", check=False).stdout, timeout=60)
    for line in said:
        bed.run(f"echo {shlex.quote('kernel: ' + line.format(pid=pid))} > /dev/kmsg")

    def verdict() -> dict[str, Any]:
        return dict(json.loads(bed.run("vllm-safe why demo --json", check=False).stdout or "{}"))

    bed.wait_for("its end", lambda: verdict().get("code", "running") != "running" or verdict().get("before"), timeout=180)
    bed.run("systemctl stop vllm@demo; systemctl reset-failed 'vllm@*'", check=False)
    runs = json.loads(bed.out("vllm-safe why demo --list --json"))
    run = next(run["run"] for run in runs if run["code"] not in {"running", "stopped"})
    return dict(json.loads(bed.out(["vllm-safe", "why", "demo", "--run", run, "--json"])))


def _texts(verdict: dict[str, Any]) -> str:
    return "\n".join(fact["text"] for fact in verdict["evidence"])


def test_a_card_that_fell_off_the_bus_goes_before_what_the_server_said(bed: Virtual) -> None:
    xid = "NVRM: Xid (PCI:0000:02:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus."
    verdict = _ended(bed, xid, "NVRM: GPU 0000:02:00.0: GPU has fallen off the bus.")
    assert verdict["code"] == "gpu-fault"
    assert "card 1 (NVIDIA GeForce RTX 3060, 0000:02:00): it has fallen off the bus" in verdict["sentence"]
    assert xid in _texts(verdict)
    assert "power the machine off and on" in verdict["hint"]


def test_what_its_own_program_did_is_told_from_what_another_did(bed: Virtual) -> None:
    other = "NVRM: Xid (PCI:0000:01:00): 13, pid=1, name=systemd, Graphics Exception: ESR 0x57c730=0xc04000b"
    own = "NVRM: Xid (PCI:0000:01:00): 31, pid={pid}, name=python3, Ch 00000008, intr 00000000. MMU Fault: ENGINE GRAPHICS"
    verdict = _ended(bed, other, own)
    assert verdict["code"] == "gpu-program-fault"
    assert "(Xid 31)" in verdict["sentence"]
    assert "Xid (PCI:0000:01:00): 13" not in _texts(verdict)
