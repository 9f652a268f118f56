"""A cold start of the real vLLM from a slow disk, phase by phase, with and without a record of what the last cold start read.

`python -m tests.bench.cold_start` prints the phases. `make bench-rows` compares whole starts. The CPUs are real, and the disk is limited to
the requests per second of a hard disk (tests/beds/slow_disk.py). The model has 4 MB, so this is what a start costs besides the weights.
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
GOAL = 0.5  # of a cold start without a record
RECORD = "/var/cache/vllm-safe/engine-files/demo.json"
STATE = "/run/vllm-safe/state/demo.json"
WITHOUT_RECORD, WITH_RECORD, WARM = "cold, no record", "cold", "warm"


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
        """The total time in seconds."""
        return self.phases[-1].at

    @property
    def served(self) -> Served:
        """What the disk has served in total."""
        return self.phases[-1].served

    def lines(self) -> Iterable[tuple[str, ...]]:
        """Return a line for each phase, and one for the total."""
        for phase, after in zip(self.phases, self.phases[1:], strict=False):
            yield (self.kind, phase.name, *_figures(after.at - phase.at, after.served.since(phase.served)))
        yield (self.kind, "all", *_figures(self.seconds, self.served))


def measure(deb: Path) -> list[Row]:
    """Return rows that compare a cold start with a record to one without: the time, and the requests, which do not depend on the CPUs."""
    without, recorded, warm = _starts(deb)
    beside = f"{recorded.seconds:.0f} s against {without.seconds:.0f} s, and {warm.seconds:.0f} s with everything in the cache"
    requests = f"{recorded.served.requests} against {without.served.requests}"
    return [
        Row("cold start with a record, relative to one without", recorded.seconds / without.seconds, GOAL, "times", beside),
        Row(
            "disk requests of a cold start with a record, relative to one without",
            recorded.served.requests / without.served.requests,
            GOAL,
            "times",
            requests,
        ),
    ]


def _starts(deb: Path) -> list[Start]:
    with SlowDisk(engine.layer(deb), **DISK) as disk, Nspawn(layers=[disk.mount], network=False) as bed:
        bed.install(deb)
        bed.write("/etc/vllm-safe/config.yaml", engine.CONFIG)
        found = []
        for kind in (WITHOUT_RECORD, WITH_RECORD, WARM):
            if kind != WARM:
                disk.forget()
            found.append(_start(bed, disk, kind))
            bed.wait_for("its record is written", lambda: bed.exists(RECORD), timeout=180, pause=1)
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
