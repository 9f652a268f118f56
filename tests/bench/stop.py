"""The time of `systemctl stop` with a server that ignores SIGTERM, as do its workers: while it loads, and while it serves."""

from __future__ import annotations

import time

from tests.beds.nspawn import Nspawn
from tests.bench.row import Row

GRACE = 3  # seconds
WORKERS = 10
SERVER = f"""\
trap '' TERM
for i in $(seq {WORKERS}); do sleep 3600 & done
[ "$1" = loads ] && exec sleep 3600
exec /usr/bin/python3 -m http.server --bind 127.0.0.1 8010
"""
CONFIG = f"""
swap: {{size: none}}
models:
  loads: {{command: [/bin/sh, /opt/stuck.sh, loads], port: 8011, health: 'http://127.0.0.1:8011/', stop_grace: {GRACE}s}}
  serves: {{command: [/bin/sh, /opt/stuck.sh, serves], port: 8010, health: 'http://127.0.0.1:8010/', stop_grace: {GRACE}s}}
"""


def measure(bed: Nspawn) -> list[Row]:
    """Stop both servers, in a bed with the package installed."""
    bed.write("/opt/stuck.sh", SERVER)
    bed.write("/etc/vllm-safe/config.yaml", CONFIG)
    return [_stop(bed, "loads", "--no-block"), _stop(bed, "serves")]


def _stop(bed: Nspawn, name: str, *options: str) -> Row:
    bed.run(["systemctl", "start", *options, f"vllm@{name}"])
    bed.wait_for("its workers", lambda: len(_alive(bed)) > WORKERS, timeout=30)
    start = time.monotonic()
    bed.run(f"systemctl stop vllm@{name}")
    seconds = time.monotonic() - start
    if left := _alive(bed):
        raise RuntimeError(f"still there after vllm@{name} was stopped: {left}")
    return Row(f"systemctl stop of a stuck server that {name}", seconds, GRACE + 5, "s", f"grace {GRACE} s; {WORKERS + 1} processes")


def _alive(bed: Nspawn) -> list[str]:
    return bed.out("pgrep --uid vllm || true").split()
