"""Run every benchmark and print one table. Exit code 1 if a goal was missed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from tests.beds.nspawn import Nspawn
from tests.bench import cli, guard, loading, record, start, swap
from tests.bench.row import Row
from vllm_safe.cli.table import columns

DEB = Path("dist/vllm-safe.deb")


def main() -> int:
    """Print the table."""
    rows = list(_measure())
    sys.stdout.write("\n".join([*columns((row.cells() for row in rows), indent=""), ""]))
    return 0 if all(row.met for row in rows) else 1


def _measure() -> Iterator[Row]:
    with Nspawn() as bed:
        bed.install(DEB)
        yield from cli.measure(bed)
        yield from start.measure(bed)
        yield from loading.measure(bed)
        yield from record.measure(bed)
    yield from swap.measure()
    yield from guard.measure(DEB)


if __name__ == "__main__":
    sys.exit(main())
