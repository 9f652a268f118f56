"""What watching a model costs while it loads: main process and recorder together. What both map counts once."""

from __future__ import annotations

import re
import time

from tests.beds.nspawn import Nspawn
from tests.bench.row import Row

SECONDS = 60
CONFIG = """
swap: {size: none}
models:
  watched:
    command: [/bin/sh, -c, 'while :; do echo loading; sleep 5; done']
    health: http://127.0.0.1:8009/
"""
UNITS = ("vllm@watched.service", "vllm-safe-record@watched.service")


def measure(bed: Nspawn) -> list[Row]:
    """A server that loads for a minute, in a bed with the package installed."""
    bed.write("/etc/vllm-safe/config.yaml", CONFIG)
    bed.run("systemctl start --no-block vllm@watched")
    bed.wait_for("both processes", lambda: "0" not in (pids := _pids(bed)) and len(pids) == len(UNITS), timeout=30)
    time.sleep(10)
    pids = _pids(bed)
    before = [_used(bed, pid) for pid in pids]
    written = _written(bed, pids[1])
    time.sleep(SECONDS)
    seconds = sum(_used(bed, pid) - old for pid, old in zip(pids, before, strict=True))
    rate = (_written(bed, pids[1]) - written) / SECONDS / 1024
    own = [_field(bed, f"/proc/{pid}/smaps_rollup", "Anonymous") / 1024 for pid in pids]
    mapped = max(_field(bed, f"/proc/{pid}/smaps_rollup", "Rss") / 1024 - mine for pid, mine in zip(pids, own, strict=True))
    bed.run("systemctl stop vllm@watched")
    beside = f"main process {own[0]:.1f}, recorder {own[1]:.1f}, Python's files that both map {mapped:.1f} MiB"
    return [
        Row("watching a model: resident", sum(own) + mapped, 20, "MiB", beside),
        Row("watching a model: processor", 100 * seconds / SECONDS, 0.5, "% of a core", f"over {SECONDS} s of loading"),
        Row("recorder: written to the disk", rate, 2, "KiB/s", "each second a sample, each five on the disk"),
    ]


def _pids(bed: Nspawn) -> list[str]:
    return [bed.properties(unit, "MainPID")["MainPID"] for unit in UNITS]


def _field(bed: Nspawn, file: str, name: str) -> int:
    match = re.search(rf"^{name}:\s+(\d+)", bed.read(file), re.MULTILINE)
    return int(match[1]) if match else 0


def _used(bed: Nspawn, pid: str) -> float:
    """Seconds of the processor, of the process alone."""
    row = bed.read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return (int(row[11]) + int(row[12])) / 100


def _written(bed: Nspawn, pid: str) -> int:
    return _field(bed, f"/proc/{pid}/io", "write_bytes")
