"""A cold start of the real vLLM from a slow disk, phase by phase, with and without what is kept of the last one.

`python -m tests.bench.cold_start` prints the phases; `make bench-rows` takes the whole. The processors are real and the disk is held to
the requests of a hard disk (tests/beds/slow_disk.py). The model has 4 MB: this is what a start costs besides the weights.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tests.beds import engine
from tests.beds.nspawn import Nspawn
from tests.beds.slow_disk import Served, SlowDisk
from tests.bench.row import Row
from vllm_safe.cli.table import align_columns
from vllm_safe.common.sizes import MIB

DISK = {"iops": 150, "bytes_per_second": 120 * MIB}
GOAL = 0.5  # of the time of a cold start without it
KEPT = "/var/cache/vllm-safe/engine-files/demo.json"
STATE = "/run/vllm-safe/state/demo.json"
NOTHING_KNOWN, KNOWN, WARM = "cold, nothing known", "cold", "warm"


@dataclass(frozen=True)
class Phase:
    """A phase of a start: when it began, in seconds, and what the disk had served by then."""

    name: str
    at: float
    served: Served


@dataclass(frozen=True)
class Start:
    """A start of the model, until it was ready."""

    kind: str
    phases: tuple[Phase, ...]

    @property
    def seconds(self) -> float:
        """The whole time."""
        return self.phases[-1].at

    @property
    def served(self) -> Served:
        """What the disk has served."""
        return self.phases[-1].served

    def lines(self) -> Iterable[tuple[str, ...]]:
        """Return a line for each phase, and one for the whole."""
        for phase, after in zip(self.phases, self.phases[1:], strict=False):
            yield (self.kind, phase.name, *_figures(after.at - phase.at, after.served.since(phase.served)))
        yield (self.kind, "all", *_figures(self.seconds, self.served))


def measure(deb: Path) -> list[Row]:
    """Return the cold start with what is known, to the one without: its time, and what of it does not depend on the processors."""
    without, known, warm = _starts(deb)
    beside = f"{known.seconds:.0f} s against {without.seconds:.0f} s, and {warm.seconds:.0f} s with everything in the cache"
    requests = f"{known.served.requests} against {without.served.requests}"
    return [
        Row("cold start, to one of which nothing is known", known.seconds / without.seconds, GOAL, "times", beside),
        Row("cold start: requests of the disk, to that", known.served.requests / without.served.requests, GOAL, "times", requests),
    ]


def _starts(deb: Path) -> list[Start]:
    with SlowDisk(engine.layer(deb), **DISK) as disk, Nspawn(layers=[disk.mount], network=False) as bed:
        bed.install(deb)
        bed.write("/etc/vllm-safe/config.yaml", engine.CONFIG)
        found = []
        for kind in (NOTHING_KNOWN, KNOWN, WARM):
            if kind != WARM:
                disk.forget()
            found.append(_start(bed, disk, kind))
            bed.wait_for("what it read is kept", lambda: bed.exists(KEPT), timeout=180, pause=1)
            bed.run("systemctl stop vllm@demo", timeout=120)
        return found


def _start(bed: Nspawn, disk: SlowDisk, kind: str) -> Start:
    before, begun, invoked = disk.served, time.monotonic(), time.time()
    bed.run("systemctl start --no-block vllm@demo")
    phases = [Phase("preparing", 0.0, Served(0, 0))]
    while phases[-1].name != "ready":
        state = json.loads(bed.out(f"cat {STATE} 2>/dev/null || echo {{}}"))
        if state.get("started", 0) >= invoked and state["phase"] != phases[-1].name:
            if state["phase"] == "ended":
                raise RuntimeError(f"the start failed: {state['reason']}")
            phases.append(Phase(state["phase"], time.monotonic() - begun, disk.served.since(before)))
        time.sleep(0.2)
    return Start(kind, tuple(phases))


def _figures(seconds: float, served: Served) -> tuple[str, ...]:
    return f"{seconds:.1f} s", str(served.requests), f"{served.read / MIB:.0f} MiB"


def table(starts: Iterable[Start]) -> str:
    """Return the starts as lines of text."""
    heading = ("start", "phase", "took", "requests", "read")
    return "\n".join([*align_columns((heading, *(line for start in starts for line in start.lines())), indent=""), ""])


if __name__ == "__main__":
    sys.stdout.write(table(_starts(Path("dist/vllm-safe.deb"))))
