"""What watching a start costs: the main process, while a server of as many processes as eight cards need loads and talks."""

from __future__ import annotations

import time

from tests.beds.nspawn import Nspawn
from tests.bench.row import Row

SECONDS = 60
WORKERS = 11  # API server, engine core, resource tracker, eight workers
# Never ready, but never still: each second a line, as vLLM prints them.
SERVER = f"""\
for i in $(seq {WORKERS - 1}); do sleep 3600 & done
while sleep 1; do n=$((n + 1)); echo "(Worker pid=$n) INFO 11-23 23:02:18 [x.py:1] step $n"; done
"""
CONFIG = """
swap:
  size: none
models:
  loads:
    command: [/bin/sh, /opt/loads.sh]
"""


def measure(bed: Nspawn) -> list[Row]:
    """Start it and watch the watcher, in a bed with the package installed."""
    bed.write("/opt/loads.sh", SERVER)
    bed.write("/etc/vllm-safe/config.yaml", CONFIG)
    bed.run("systemctl start --no-block vllm@loads")
    bed.wait_for("it loads", lambda: "step 2" in bed.journal("vllm@loads"), timeout=30)
    pid = bed.properties("vllm@loads.service", "MainPID")["MainPID"]
    before, start = _cpu(bed, pid), time.monotonic()
    time.sleep(SECONDS)
    share = (_cpu(bed, pid) - before) / (time.monotonic() - start)
    resident = int(bed.out(f"grep VmHWM /proc/{pid}/status").split()[1]) / 1024
    bed.run("systemctl stop vllm@loads")
    beside = f"over {SECONDS} s, a server of {WORKERS} processes"
    return [
        Row("main process, share of one core while loading", share * 100, 0.5, "%", beside),
        Row("main process, most resident while loading", resident, 20, "MiB", beside),
    ]


def _cpu(bed: Nspawn, pid: str) -> float:
    """Seconds of CPU that a process has used, to the nanosecond: clock ticks are 0.02 % of a minute."""
    return int(bed.read(f"/proc/{pid}/schedstat").split()[0]) / 1e9
