"""The hog's unit: a transient service in the models' slice, with the limits that a model would have."""

from __future__ import annotations

import shlex
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from vllm_safe.apply.unit_steps import StopUnit
from vllm_safe.common.errors import Failure
from vllm_safe.common.kernfs import CGROUPS, MODELS_SLICE, parse_number, read_kernel_file
from vllm_safe.common.paths import USER
from vllm_safe.drill.drill_decision import Hog

UNIT = "vllm-safe-drill.service"
CGROUP = Path(CGROUPS, MODELS_SLICE)
FILL = 120.0  # seconds, at most, until the hog presses
GRACE = 30.0  # seconds after the drill until systemd ends the hog, if it still runs; it ends itself after half of them

# The kernel kills the hog first, whatever the configuration sets for a model. The hog may read its own program, and nothing else.
_OWN = {
    "Slice": MODELS_SLICE,
    "User": USER,
    "OOMScoreAdjust": "1000",
    "OOMPolicy": "kill",
    "KillSignal": "SIGKILL",
    "LimitCORE": "0",
    "CapabilityBoundingSet": "",
    "NoNewPrivileges": "yes",
    "PrivateNetwork": "yes",
    "ProtectSystem": "strict",
    "ProtectHome": "read-only",
    "Wants": "vllm-safe-guard.service vllm-safe-tunables.service",
    "After": "vllm-safe-guard.service vllm-safe-tunables.service",
}


class StartHog:
    """The step that starts the hog. The hog ends with `stop`, when this process ends in any way, or after its time.

    If it does not end by itself, systemd ends it a little later (RuntimeMaxSec=).
    """

    def __init__(self, hog: Hog, properties: Mapping[str, object], seconds: float) -> None:
        self.touched: list[int] = []  # for each second, the pages touched since the start
        self._process: subprocess.Popen[str] | None = None
        own = {**_OWN, "RuntimeMaxSec": f"{FILL + seconds + GRACE:.0f}"}
        words = [f"--property={name}={value}" for name, value in {**properties, **own}.items()]
        self._command = [
            *(
                "systemd-run",
                "--quiet",
                "--collect",
                "--pipe",
                "--wait",
                f"--unit={UNIT}",
                "--description=vllm-safe drill: the hog",
                *words,
            ),
            *(sys.executable, "-I", str(Path(__file__).with_name("hog.py"))),
            *(str(hog.size), str(hog.processes), f"{FILL + seconds + GRACE / 2:.0f}"),
        ]

    def describe(self) -> str:
        """Describe the step in one line."""
        return f"run {shlex.join(self._command)}"

    def run(self) -> None:
        """Start the hog, without waiting for it. Raises Failure where there is no systemd-run."""
        pipe = subprocess.PIPE
        try:
            # In a session of its own, so that Ctrl-C reaches only this process, which then ends the hog in order.
            self._process = subprocess.Popen(self._command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, start_new_session=True)
        except OSError as error:
            raise Failure(f"cannot run systemd-run: {error.strerror}", hint="vllm-safe needs a machine booted with systemd.") from error
        threading.Thread(target=self._follow, daemon=True).start()

    @property
    def ended(self) -> bool:
        """Whether the hog has ended, or was never started."""
        return self._process is None or self._process.poll() is not None

    def stop(self) -> None:
        """End the hog and wait until it is gone. Raises Failure, with systemd's message, if it never ran."""
        if not (process := self._process):
            return
        self._process = None
        with suppress(Failure):  # the hog has ended by itself, and systemd has unloaded its unit
            StopUnit(UNIT).run()
        process.wait()
        errors = process.stderr.read().strip() if process.stderr else ""
        if not self.touched and errors:
            raise Failure(f"the hog did not start: {errors.splitlines()[-1]}", hint=f"See: journalctl -b -u {UNIT}")

    def _follow(self) -> None:
        process = self._process
        for line in (process and process.stdout) or ():
            self.touched.append(int(line))


def memory() -> tuple[int, int]:
    """Return the bytes of RAM and of swap that the hog has now."""
    ram, swap = (parse_number(read_kernel_file(f"{CGROUP}/{UNIT}/{name}")) for name in ("memory.current", "memory.swap.current"))
    return ram or 0, swap or 0


def occupants() -> tuple[str, ...]:
    """Return the units in the models' slice that have processes, except the hog's own."""
    return tuple(
        sorted(
            group.parent.name
            for group in CGROUP.glob("*/cgroup.events")
            if group.parent.name != UNIT and "populated 1" in group.read_text()
        )
    )
