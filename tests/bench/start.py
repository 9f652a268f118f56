"""The time that the units add to a start, compared with the same server in a bare unit; and the memory of the main process."""

from __future__ import annotations

import statistics
from collections.abc import Callable

from tests.beds.nspawn import Nspawn
from tests.bench.row import Row

ROUNDS = 9
# Both units run this command, which prints when it was executed, then serves.
SERVER = 'echo "executed at $(date +%s%N)"; exec /usr/bin/python3 -m http.server --bind 127.0.0.1 {port}'
BARE = """
[Service]
ExecStart=/bin/sh -c '{server}'
"""
CONFIG = """
swap:
  size: none
models:
  bench:
    command: [/bin/sh, -c, '{server}']
    health: http://127.0.0.1:8000/
"""
START = """
systemctl stop {unit}; date +%s%N; systemctl start {unit}
for i in $(seq 100); do
    journalctl --sync
    line=$(journalctl --unit {unit} --output cat 2>/dev/null | grep 'executed at' | tail -n 1)
    [ "$line" = "$last" ] || break
    sleep 0.1
done
echo "$line"
"""


def measure(bed: Nspawn) -> list[Row]:
    """Start both servers in turn, in a bed with the package installed."""
    bed.write("/etc/vllm-safe/config.yaml", CONFIG.format(server=SERVER.format(port=8000)))
    # in a unit file, %% stands for %, and $$ for $
    bed.write("/etc/systemd/system/bare.service", BARE.format(server=SERVER.format(port=8001).replace("%", "%%").replace("$", "$$")))
    bed.run("systemctl daemon-reload")
    ours, bare = _starts(bed, "vllm@bench.service"), _starts(bed, "bare.service")
    ours(), bare()  # the first start makes caches and bytecode
    pairs = [(ours(), bare()) for _ in range(ROUNDS)]
    mine, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
    added = statistics.median(one - other for one, other in pairs)
    pid = bed.properties("vllm@bench.service", "MainPID")["MainPID"]
    resident = int(bed.out(f"grep VmRSS /proc/{pid}/status").split()[1]) / 1024
    bed.run("systemctl stop vllm@bench bare")
    beside = f"vllm@bench {mine:.2f} s, bare {theirs:.2f} s, median of {ROUNDS} pairs"
    return [
        Row("start: time to exec, over a bare unit", added, 0.5, "s", beside),
        Row("main process, resident", resident, 20, "MiB", "while it serves"),
    ]


def _starts(bed: Nspawn, unit: str) -> Callable[[], float]:
    def start() -> float:
        """Return the seconds from `systemctl start` to the first instruction of the server."""
        before = bed.out(f"journalctl --unit {unit} --output cat | grep 'executed at' | tail -n 1 || true")
        lines = bed.run(START.format(unit=unit).replace('"$last"', f'"{before}"'), timeout=120).stdout.split("\n")
        begun = int(lines[0])
        executed = int(next(line for line in reversed(lines) if "executed at" in line).rsplit(" ", 1)[1])
        return (executed - begun) / 1e9

    return start
