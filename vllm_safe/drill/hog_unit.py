"""The hog's unit: a transient service where a model's would be, with what a model would have."""

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
GRACE = 30.0  # seconds after the drill until systemd ends the hog, should nobody have done so; in half of it, it ends itself

# The hog first, whatever the configuration says of a model; it may read the program that it is, and nothing else.
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
    """Start the hog. It ends with `stop`, when this process ends in any way, or by its own clock, or systemd's a little later."""

    def __init__(self, hog: Hog, properties: Mapping[str, object], seconds: float) -> None:
        self.touched: list[int] = []  # pages since the start, each second
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
        """The step in one line."""
        return f"run {shlex.join(self._command)}"

    def run(self) -> None:
        """Start it, without waiting. Failure if there is no systemd."""
        pipe = subprocess.PIPE
        try:
            # A session of its own: Ctrl-C is for us, who then end it in order.
            self._process = subprocess.Popen(self._command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, start_new_session=True)
        except OSError as error:
            raise Failure(f"cannot run systemd-run: {error.strerror}", hint="vllm-safe needs a machine booted with systemd.") from error
        threading.Thread(target=self._follow, daemon=True).start()

    @property
    def ended(self) -> bool:
        """Whether it runs no more, or never did."""
        return self._process is None or self._process.poll() is not None

    def stop(self) -> None:
        """End it and wait until it has gone. Failure, with what systemd said, if it never ran."""
        if not (process := self._process):
            return
        self._process = None
        with suppress(Failure):  # it has ended by itself, and systemd has forgotten it
            StopUnit(UNIT).run()
        process.wait()
        said = process.stderr.read().strip() if process.stderr else ""
        if not self.touched and said:
            raise Failure(f"the hog did not start: {said.splitlines()[-1]}", hint=f"See: journalctl -b -u {UNIT}")

    def _follow(self) -> None:
        process = self._process
        for line in (process and process.stdout) or ():
            self.touched.append(int(line))


def memory() -> tuple[int, int]:
    """Bytes of RAM and of swap that the hog's cgroup has now; psutil knows processes, whose shared pages it would count again."""
    ram, swap = (parse_number(read_kernel_file(f"{CGROUP}/{UNIT}/{name}")) for name in ("memory.current", "memory.swap.current"))
    return ram or 0, swap or 0


def occupants() -> tuple[str, ...]:
    """The units in the models' slice that have processes, but for the hog's own."""
    return tuple(
        sorted(
            group.parent.name
            for group in CGROUP.glob("*/cgroup.events")
            if group.parent.name != UNIT and "populated 1" in group.read_text()
        )
    )
