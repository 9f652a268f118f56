"""A checkpoint read by eight workers from a slow disk, compared with the pace of the disk itself: `python -m tests.bench.loading`.

It runs in a VM, where memory limits and disk requests are real. vLLM itself would take hours on the emulated CPU. Instead, readers touch
the pages that vLLM touches (loading_readers.py). From the page cache, or from a disk as fast as that of this machine may be, a load costs
mostly processor time, so that is measured on the processors of this machine. The command prints all cells. `make bench-rows` takes the
worst cells of our loader.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.beds.vm import Shape, Virtual
from tests.bench import loading_readers
from tests.bench.loading_readers import FILE, Task
from tests.bench.row import Row
from vllm_safe.cli.table import align_columns
from vllm_safe.common.sizes import MIB

FILES = 4
PACE = 120 * MIB  # bytes a second, of the disk
OWN = 48 * MIB  # memory of the workers themselves
LOADER, READERS = Path("vllm_safe/engine/as_engine/vllm_safe_loader"), Path("tests/bench/loading_readers.py")
FOLDER, GUEST = "/srv/checkpoint", "/opt/loading"
MAKE = f"""
mkdir -p {FOLDER}
for i in $(seq {FILES}); do dd if=/dev/zero of={FOLDER}/$i bs=1M count={FILE} iflag=count_bytes status=none; done
sync
"""
CACHES = {"1/8": 1 / 8, "1/3": 1 / 3, "2": 2.0, "3": 3.0}  # memory beside that of the workers, as a multiple of the size of a file
GOAL = 1 / 0.85  # of the disk's own time
ROUNDS = 9  # of a load from the page cache, which takes a fraction of a second
NO_SLOWER = 1.1  # times as long: two runs of the same cell differ by as much
MOST_READ = 1.05  # of the bytes of the files


@dataclass(frozen=True)
class Load:
    """One measurement: a way to read, the requests per second that the disk allows (0: unlimited), and the memory for the page cache."""

    way: str
    disk: int
    cache: str
    shape: str = "gptq"
    how: str = ""  # "unlike": workers of different pace; "cached", "own": from the page cache or the disk of this machine, not in a VM


@dataclass(frozen=True)
class Cell:
    """The result of one measurement."""

    load: Load
    seconds: float
    read: int
    size: int
    requests: int
    peak: int

    @property
    def pace(self) -> float:
        """Bytes of the files per second."""
        return self.size / self.seconds

    def words(self) -> tuple[str, ...]:
        """Return the cells of its line in the table."""
        load = self.load
        figures = (
            f"{self.seconds:.1f} s",
            f"{self.pace / MIB:.0f} MiB/s",
            f"{self.read / self.size:.2f} x",
            str(self.requests),
            f"{self.peak / MIB:.0f} MiB",
        )
        return (load.way, str(load.disk or "any"), load.cache, load.shape, load.how or "-", *figures)


HEADING = ("way", "disk", "memory", "shape", "how", "took", "pace", "read", "requests", "peak")
DISK, VLLM, RING = "disk", "vllm", "ring"
CACHED, OWN_DISK = "cached", "own"
SLOW = (150, 600)
LOADS = (
    *(Load(DISK, disk, "2") for disk in SLOW),
    *(Load(RING, disk, cache) for disk in SLOW for cache in ("1/8", "1/3", "2")),
    *(Load(RING, 150, cache, how="unlike") for cache in ("1/8", "1/3", "2")),
    *(Load(RING, disk, cache, "bf16") for disk in SLOW for cache in ("1/8", "2")),
    Load(VLLM, 150, "1/3"),
    Load(VLLM, 600, "2"),
    *(Load(way, 0, "2", shape) for shape in ("gptq", "bf16") for way in (VLLM, RING)),
    *(Load(way, 0, "3", shape, how) for how in (CACHED, OWN_DISK) for shape in ("gptq", "bf16") for way in (VLLM, RING)),
)


def measure() -> list[Row]:
    """Measure all cells. Return the worst results of our loader as rows, relative to the disk alone and to vLLM's own loader."""
    return rows(list(cells()))


def rows(measured: list[Cell]) -> list[Row]:
    """Return the rows of the measured cells."""
    found = {cell.load: cell for cell in measured}
    alone = {cell.load.disk: cell.pace for cell in measured if cell.load.way == DISK}
    ours = [cell for cell in measured if cell.load.way == RING]
    slowest = max((cell for cell in ours if cell.load.disk), key=lambda cell: alone[cell.load.disk] / cell.pace)
    most = max(ours, key=lambda cell: cell.read / cell.size)
    beside = f"{slowest.pace / MIB:.0f} of {alone[slowest.load.disk] / MIB:.0f} MiB/s; {_name(slowest.load)}"
    result = [
        Row("loading time, relative to the disk alone", alone[slowest.load.disk] / slowest.pace, GOAL, "times", beside),
        Row("bytes read while loading, relative to the files", most.read / most.size, MOST_READ, "times", _name(most.load)),
    ]
    for how, name in (("", "from a fast disk"), (CACHED, "from the page cache"), (OWN_DISK, "from this machine's own disk")):
        fast = [cell for cell in ours if (cell.load.disk, cell.load.how) == (0, how)]
        pairs = [(cell, found[replace(cell.load, way=VLLM)]) for cell in fast]
        mine, theirs = max(pairs, key=lambda pair: pair[0].seconds / pair[1].seconds)
        beside = f"{mine.seconds:.1f} s against {theirs.seconds:.1f} s; {_name(mine.load)}"
        result.append(Row(f"loading time {name}, relative to vLLM's own loader", mine.seconds / theirs.seconds, NO_SLOWER, "times", beside))
    return result


def _name(load: Load) -> str:
    return f"{load.disk or 'any'} requests a second, memory of {load.cache} files, {load.shape} {load.how}".rstrip()


def cells(loads: Iterable[Load] = LOADS) -> Iterator[Cell]:
    """Measure each load."""
    wanted = list(loads)
    here = [load for load in wanted if load.how in (CACHED, OWN_DISK)]
    by_disk = sorted((load for load in wanted if load not in here), key=lambda load: load.disk)
    with Virtual(Shape(cpus=2), urgent=True) as bed:
        bed.run(MAKE, timeout=600)
        put_readers(bed, GUEST)
        for load in by_disk:
            bed.throttle(iops=load.disk, bytes_per_second=PACE if load.disk else 0)
            yield _measure(bed, load)

    yield from _cells_of_this_machine(here)


def put_readers(bed: Virtual, folder: str) -> None:
    """Copy the readers and the loader to the bed, to the same relative paths below `folder` as in this repository."""
    bed.run(["mkdir", "--parents", f"{folder}/{READERS.parent}", f"{folder}/{LOADER}"])
    for source in (READERS, *sorted(LOADER.glob("*.py"))):
        bed.put(source, f"{folder}/{source}")


def _measure(bed: Virtual, load: Load) -> Cell:
    room = int(CACHES[load.cache] * FILE)
    task = Task(load.way, FOLDER, room, load.shape, unlike=load.how == "unlike", count=FILES)
    unit = f"systemd-run --wait --pipe --quiet --property=MemoryMax={room + OWN} --property=MemorySwapMax=0"
    said = bed.out(f"{unit} /usr/bin/python3 {GUEST}/{READERS} '{json.dumps(asdict(task))}'", timeout=600)
    return Cell(load, **json.loads(said))


def _cells_of_this_machine(loads: Sequence[Load]) -> Iterator[Cell]:
    """Measure loads on this machine in turns. Yield the median of each."""
    with TemporaryDirectory(dir="/var/tmp") as folder:
        for number in range(FILES):
            Path(folder, str(number)).write_bytes(os.urandom(FILE))
        os.sync()
        found: dict[Load, list[Cell]] = {load: [] for load in loads}
        for _ in range(ROUNDS):
            for load in loads:
                task = Task(load.way, folder, int(CACHES[load.cache] * FILE), load.shape, warm=load.how == CACHED, count=FILES)
                command = [sys.executable, loading_readers.__file__, json.dumps(asdict(task))]
                said = subprocess.run(command, check=True, capture_output=True, text=True, timeout=600).stdout
                found[load].append(Cell(load, **json.loads(said)))
    for measured in found.values():
        yield sorted(measured, key=lambda cell: cell.seconds)[ROUNDS // 2]


def table(measured: Iterable[Cell]) -> str:
    """Return the cells as lines of text."""
    return "\n".join([*align_columns((HEADING, *(cell.words() for cell in measured)), indent=""), ""])


if __name__ == "__main__":
    sys.stdout.write(table(cells()))
