"""A check whether a stock kernel boots under KVM on this machine: some machines have /dev/kvm, and the guest hangs."""

from __future__ import annotations

import os
import subprocess
from functools import cache as once
from pathlib import Path

from tests.beds import cache
from tests.beds.machine import TIED

# Without what is slow to emulate: with ERMS and FSRM the kernel clears and copies pages byte by byte (touching 300 MiB takes three times as
# long), with SMAP each copy from or to a program ends two blocks of translated code.
EMULATED = ("-accel", "tcg,thread=multi,tb-size=512", "-cpu", "max,-erms,-fsrm,-smap")
NATIVE = ("-accel", "kvm", "-cpu", "host")
PATIENCE = 15.0  # seconds; a kernel that works reaches its panic (it has no disk) in two


@once
def accelerator(kernel: Path) -> tuple[str, ...]:
    """Return QEMU's options for the fastest way to run `kernel`, which is tried once in each boot of this machine."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return EMULATED
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    known = cache.ROOT / "run" / f"kvm-{boot}"
    with cache.locked(cache.ROOT / "run/.kvm.lock"):
        if not known.exists():
            known.write_text("works" if _boots(kernel) else "hangs")
        return NATIVE if known.read_text() == "works" else EMULATED


def _boots(kernel: Path) -> bool:
    """Return whether `kernel` gets as far as its panic, since it has no disk; the panic ends QEMU (-no-reboot)."""
    command = [*TIED, "qemu-system-x86_64", *NATIVE, "-m", "256", "-nodefaults", "-display", "none", "-no-reboot"]
    try:
        done = subprocess.run(
            [*command, "-kernel", str(kernel), "-append", "panic=-1"],
            check=False,
            timeout=PATIENCE,
            stdin=subprocess.DEVNULL,
            capture_output=True,
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0
