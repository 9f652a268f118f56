"""A checkpoint read by eight workers from a slow disk, compared with the pace of the disk itself: `python -m tests.bench.loading`.

It runs in a VM, where limits of memory and requests of the disk are real. vLLM itself would take hours on its emulated processor: readers
touch what vLLM touches (loading_readers.py). The command prints all cells; `make bench-rows` takes the worst of what ships.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.beds.vm import Shape, Virtual
from tests.bench import loading_readers
from tests.bench.row import Row
from vllm_safe.cli.table import align_columns
from vllm_safe.common.sizes import MIB

FILES = 4
REQUESTS = (150, 600)  # a second, of the disk
PACE = 120 * MIB  # bytes a second, of the disk
CACHES = ("1/3", 1 / 3), ("2", 2.0)  # page cache of the workers' unit, by the size of a file
OWN = 56 * MIB  # memory of the workers themselves
WAYS = ("vllm", "windows")
SHIPPED = "windows"
LOADER = Path("vllm_safe/engine/as_engine/vllm_safe_loader")
PARTS = ("__init__.py", "cache_room.py", "shard_layout.py", "window_walk.py")
DISK_ALONE = "disk"
GOAL = 1 / 0.85  # of the time of the disk itself
FOLDER, GUEST = "/srv/checkpoint", "/opt/loading"
MAKE = f"""
mkdir -p {FOLDER} {GUEST}
for i in $(seq {FILES}); do dd if=/dev/zero of={FOLDER}/$i bs={loading_readers.TENSOR} count={loading_readers.TENSORS} status=none; done
sync
"""


@dataclass(frozen=True)
class Cell:
    """One load: how, on a disk of how many requests a second, with how much cache; and what it took."""

    way: str
    disk: int
    cache: str
    seconds: float
    read: int
    files: int
    requests: int

    def words(self) -> tuple[str, ...]:
        """Return the cells of its line."""
        mib = self.files / MIB
        columns = f"{self.seconds:.1f} s", f"{mib / self.seconds:.0f} MiB/s", f"{self.read / self.files:.2f} x", str(self.requests)
        return (self.way, str(self.disk), self.cache, *columns)


HEADING = ("way", "disk", "cache", "took", "pace", "read", "requests")


def measure() -> list[Row]:
    """Measure all cells; return the worst of what ships, as a row, beside vLLM's own loader there."""
    cells = list(_cells())
    alone = {cell.disk: cell.seconds for cell in cells if cell.way == DISK_ALONE}
    worst = max((cell for cell in cells if cell.way == SHIPPED), key=lambda cell: cell.seconds / alone[cell.disk])
    theirs = next(cell for cell in cells if (cell.way, cell.disk, cell.cache) == ("vllm", worst.disk, worst.cache))
    beside = f"{worst.seconds:.0f} s against {alone[worst.disk]:.0f} s, and {theirs.seconds:.0f} s of vLLM's own loader"
    where = f"{worst.disk} requests a second, cache {worst.cache} of a file"
    return [Row("loading, to the disk alone", worst.seconds / alone[worst.disk], GOAL, "times", f"{beside}; {where}")]


def _cells() -> Iterator[Cell]:
    with Virtual(Shape(), urgent=True) as bed:
        bed.run(MAKE, timeout=600)
        bed.run(["mkdir", "--parents", f"{GUEST}/{LOADER.name}"])
        bed.put(Path(loading_readers.__file__), f"{GUEST}/loading_readers.py")
        for part in PARTS:
            bed.put(LOADER / part, f"{GUEST}/{LOADER.name}/{part}")
        for disk in REQUESTS:
            bed.throttle(iops=disk, bytes_per_second=PACE)
            yield _measure(bed, DISK_ALONE, disk, ("-", 2.0))
            for cache in CACHES:
                for way in WAYS:
                    yield _measure(bed, way, disk, cache)


def _measure(bed: Virtual, way: str, disk: int, cache: tuple[str, float]) -> Cell:
    name, share = cache
    room = int(share * loading_readers.FILE)
    unit = f"systemd-run --wait --pipe --quiet --property=MemoryMax={room + OWN} --property=MemorySwapMax=0"
    said = bed.out(f"{unit} /usr/bin/python3 {GUEST}/loading_readers.py {way} {FOLDER} {room}", timeout=600)
    return Cell(way, disk, name, **json.loads(said))


def table(cells: Iterable[Cell]) -> str:
    """Return the cells as lines of text."""
    return "\n".join([*align_columns((HEADING, *(cell.words() for cell in cells)), indent=""), ""])


if __name__ == "__main__":
    sys.stdout.write(table(_cells()))
