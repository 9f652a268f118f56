"""Run the named benchmarks, or all of them, and print one table. The exit code is 1 if a goal was missed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from tests.beds.nspawn import Nspawn
from tests.bench import cli, cold_start, foretold, gateway, guard, loading, record, start, stop, swap
from tests.bench.row import Row
from vllm_safe.cli.table import align_columns

DEB = Path("dist/vllm-safe.deb")
CONTAINED = {"cli": cli, "start": start, "record": record, "stop": stop}  # in one container, one after the other
NAMES = (*CONTAINED, "swap", "guard", "gateway", "loading", "cold_start", "foretold")


def main() -> int:
    """Run the benchmarks and print the table. Return the exit code."""
    wanted = set(sys.argv[1:] or NAMES)
    if unknown := wanted - set(NAMES):
        sys.exit(f"no benchmark is called {' or '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    rows = list(_measure(wanted))
    sys.stdout.write("\n".join([*align_columns((row.cells() for row in rows), indent=""), ""]))
    return 0 if all(row.met for row in rows) else 1


def _measure(wanted: set[str]) -> Iterator[Row]:
    if contained := [module for name, module in CONTAINED.items() if name in wanted]:
        with Nspawn() as bed:
            bed.install(DEB)
            for module in contained:
                yield from module.measure(bed)
    if "swap" in wanted:
        yield from swap.measure()
    if "guard" in wanted:
        yield from guard.measure(DEB)
    if "gateway" in wanted:
        yield from gateway.measure(DEB)
    if "loading" in wanted:
        yield from loading.measure()
    if "cold_start" in wanted:
        yield from cold_start.measure(DEB)
    if "foretold" in wanted:
        yield from foretold.measure(DEB)


if __name__ == "__main__":
    sys.exit(main())
