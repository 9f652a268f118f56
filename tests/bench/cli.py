"""The time of the command line, as installed, compared with that of the interpreter."""

from __future__ import annotations

import statistics

from tests.beds.nspawn import Nspawn
from tests.bench.row import Row

ROUNDS = 21
# Run as an ordinary user just after the installation, when no bytecode has been written.
SCRIPT = f"""
for round in $(seq {ROUNDS}); do
    a=$(date +%s%N); vllm-safe --help >/dev/null
    b=$(date +%s%N); /usr/bin/python3 -c pass
    c=$(date +%s%N); echo $((b - a)) $((c - b))
done
"""


def measure(bed: Nspawn) -> list[Row]:
    """Time `vllm-safe --help` and `python3 -c pass`, in turn, in a bed with the package installed."""
    lines = bed.run(["runuser", "-u", "nobody", "--", "sh", "-c", SCRIPT]).stdout.splitlines()
    mine, theirs = (statistics.median(column) / 1e6 for column in zip(*(map(int, line.split()) for line in lines), strict=True))
    beside = f"{mine:.0f} ms against {theirs:.0f} ms, median of {ROUNDS} pairs"
    return [Row("vllm-safe --help, to python3 -c pass", mine / theirs, 4, "times", beside)]
