"""The cost of watching a model while it loads: main process and recorder together. Memory that both map counts once."""

from __future__ import annotations

import re
import time

from tests.beds.nspawn import Nspawn
from tests.bench.row import Row

SECONDS = 60
WORKERS = 11  # as many processes as with eight GPUs: API server, engine core, resource tracker, eight workers
# The server is never ready, but prints a line every second, in the format of vLLM.
SERVER = f"""\
for i in $(seq {WORKERS - 1}); do sleep 3600 & done
while sleep 1; do n=$((n + 1)); echo "(Worker pid=$n) INFO 11-23 23:02:18 [x.py:1] step $n"; done
"""
CONFIG = """
swap: {size: none}
models:
  watched:
    command: [/bin/sh, /opt/watched.sh]
    port: 8009
    health: http://127.0.0.1:8009/
"""
UNITS = ("vllm@watched.service", "vllm-safe-record@watched.service")


def measure(bed: Nspawn) -> list[Row]:
    """Watch a server that loads for a minute, in a bed with the package installed."""
    bed.write("/opt/watched.sh", SERVER)
    bed.write("/etc/vllm-safe/config.yaml", CONFIG)
    bed.run("systemctl start --no-block vllm@watched")
    bed.wait_for("both processes", lambda: "0" not in (pids := _pids(bed)) and len(pids) == len(UNITS), timeout=30)
    time.sleep(10)
    pids = _pids(bed)
    before, start = [_used(bed, pid) for pid in pids], time.monotonic()
    written = _written(bed, pids[1])
    time.sleep(SECONDS)
    seconds = time.monotonic() - start
    main, recorder = (100 * (_used(bed, pid) - old) / seconds for pid, old in zip(pids, before, strict=True))
    rate = (_written(bed, pids[1]) - written) / seconds / 1024
    own = [_field(bed, f"/proc/{pid}/smaps_rollup", "Anonymous") / 1024 for pid in pids]
    mapped = max(_field(bed, f"/proc/{pid}/smaps_rollup", "Rss") / 1024 - mine for pid, mine in zip(pids, own, strict=True))
    bed.run("systemctl stop vllm@watched")
    resident = f"main process {own[0]:.1f}, recorder {own[1]:.1f}, Python's files that both map {mapped:.1f} MiB"
    shares = f"main process {main:.2f}, recorder {recorder:.2f} %; over {SECONDS} s, a server of {WORKERS} processes"
    return [
        Row("watching a model that loads: resident", sum(own) + mapped, 20, "MiB", resident),
        Row("watching a model that loads: processor", main + recorder, 0.5, "% of a core", shares),
        Row("recorder: written", rate, 2, "KiB/s", "without rounding to blocks, and without the journal"),
    ]


def _pids(bed: Nspawn) -> list[str]:
    return [bed.properties(unit, "MainPID")["MainPID"] for unit in UNITS]


def _field(bed: Nspawn, file: str, name: str) -> int:
    match = re.search(rf"^{name}:\s+(\d+)", bed.read(file), re.MULTILINE)
    return int(match[1]) if match else 0


def _used(bed: Nspawn, pid: str) -> float:
    """Return the CPU seconds that a process has used, to the nanosecond: a clock tick is 0.02 % of a minute."""
    return int(bed.read(f"/proc/{pid}/schedstat").split()[0]) / 1e9


def _written(bed: Nspawn, pid: str) -> int:
    """Return the bytes that a process has written.

    write_bytes is not used: where the page cache has large folios (ext4 since Linux 6.16), it counts a block as 64 KiB.
    """
    return _field(bed, f"/proc/{pid}/io", "wchar")
