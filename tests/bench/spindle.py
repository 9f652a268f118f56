"""Swapping beside a load of weights, on one slow disk: `python -m tests.bench.spindle [ROUNDS]`, which takes six minutes per round.

It runs in a VM, where the limits of the disk apply to both together. Ways to hold back either of them are compared with each of them alone,
in the same run. The figures are in SPINDLE.md.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields

from tests.beds.vm import Shape, Virtual
from tests.bench import loading
from tests.bench.login.setups import hog_command, put_hogs
from vllm_safe.cli.table import align_columns
from vllm_safe.common.sizes import GIB, KIB, MIB

SECONDS = 20
SETTLE = 20  # seconds until the swapper has filled its memory
# The memory that the swapper's four processes touch, and that of their unit. No process fits into the latter, so that each needs the disk.
SWAPPED = 640 * MIB
ROOM = SWAPPED // 6
READER = 250 * MIB  # memory of the unit that reads
DISK = {"iops": 150, "bytes_per_second": 120 * MIB}
FOLDER, QUEUE = "/run/spindle", "/sys/block/vda/queue/scheduler"
PAGE = 4 * KIB
MAKE = f"""
mkdir -p {FOLDER}/reader {FOLDER}/swapper
modprobe bfq
fallocate -l 2G /swapfile && chmod 600 /swapfile && mkswap -q /swapfile && swapon /swapfile
echo y > /sys/kernel/mm/lru_gen/enabled # as shipped: tunables.lru_gen
"""
# Prints two lines, SECONDS apart: the time, and the pages read, touched and swapped in and the requests completed so far.
SAMPLE = f"""
pages() {{ od -An -v -w8 -tu8 {FOLDER}/$1/progress 2>/dev/null | awk '{{ sum += $1 }} END {{ print sum + 0 }}'; }}
while [ -e {FOLDER}/reader/progress ] && [ "$(pages reader)" = 0 ]; do sleep 0.5; done
for pause in {SECONDS} 0; do
    echo $(cut -d ' ' -f 1 /proc/uptime) $(pages reader) $(pages swapper) \
        $(awk '/^pswpin / {{ print $2 }}' /proc/vmstat) $(awk '{{ print $1 + $5 }}' /sys/block/vda/stat)
    sleep $pause
done
"""


@dataclass(frozen=True)
class Way:
    """A way to share the disk. request: the bytes of a read, and how many reads are made at once. cluster: vm.page-cluster."""

    name: str
    kind: str = "stream"
    request: tuple[int, int] = (4 * MIB, 2)
    io_class: str = "best-effort"
    cluster: int = 3
    scheduler: str = "mq-deadline"
    swaps: bool = True


@dataclass(frozen=True)
class Paces:
    """Figures per second: bytes read, pages touched, pages swapped in, and requests that the disk completed."""

    read: float
    touched: float
    swapped: float
    requests: float


FIELDS = tuple(field.name for field in fields(Paces))
ALONE, SWAPS = Way("reads alone", swaps=False), Way("swaps alone", kind="")
WAYS = (  # the swapper starts after the ways without it
    ALONE,
    SWAPS,
    Way("both, as shipped"),
    Way("vLLM's own loader", kind="load-vllm"),
    Way("one read at once", request=(4 * MIB, 1)),
    Way("reads of 1 MiB", request=(1 * MIB, 2)),
    Way("one read of 1 MiB at once", request=(1 * MIB, 1)),
    Way("reader idle", io_class="idle"),
    Way("vm.page-cluster=0", cluster=0),
    Way("vm.page-cluster=5", cluster=5),
    Way("BFQ", scheduler="bfq"),
    Way("BFQ, reader idle", scheduler="bfq", io_class="idle"),
)


def measure(rounds: int) -> Iterator[tuple[str, ...]]:
    """Yield the rows of the table, with the medians of the rounds.

    lost for a GiB: how many pages would have been swapped in, without the reader, while it reads a GiB.
    """
    found: dict[Way, list[Paces]] = {way: [] for way in WAYS}
    with Virtual(Shape(cpus=2), urgent=True) as bed:
        bed.run(loading.MAKE, timeout=600)
        bed.run(MAKE, timeout=300)
        put_hogs(bed)
        bed.throttle(**DISK)
        for _ in range(rounds):
            swapping = False
            for way in WAYS:
                if way.swaps and not swapping:
                    swapping = True
                    _start(bed, "swapper", hog_command("anonymous", SWAPPED * 10 // 24, 0), f"MemoryMax={ROOM}")
                    bed.run(["sleep", str(SETTLE)], timeout=120)
                found[way].append(_measure(bed, way))
                sys.stderr.write(f"{way.name}: {found[way][-1]}\n")
            _stop(bed, "swapper")
    middle = {way: Paces(*(statistics.median(getattr(paces, name) for paces in each) for name in FIELDS)) for way, each in found.items()}
    yield ("way", "read", "of alone", "swapped in", "of alone", "lost for a GiB", "touched", "requests")
    for way, paces in middle.items():
        read, swapped = paces.read / middle[ALONE].read, paces.swapped / middle[SWAPS].swapped
        lost = f"{(middle[SWAPS].swapped - paces.swapped) / (paces.read / GIB):.0f}" if way.kind and way.swaps else "-"
        figures = f"{paces.read / MIB:.0f} MiB/s", f"{read:.0%}", f"{paces.swapped:.0f}/s", f"{swapped:.0%}", lost
        yield (way.name, *figures, f"{paces.touched:.0f}/s", f"{paces.requests:.0f}/s")


def _measure(bed: Virtual, way: Way) -> Paces:
    bed.run(f"echo {way.scheduler} > {QUEUE}; echo {way.cluster} > /proc/sys/vm/page-cluster")
    if way.kind:
        words = [hog_command(way.kind, 0, 10 * SECONDS), *(map(str, way.request) if way.kind == "stream" else ())]
        _start(bed, "reader", " ".join(words), f"MemoryMax={READER}", f"IOSchedulingClass={way.io_class}")
        bed.wait_for("the reader is there", lambda: bed.exists(f"{FOLDER}/reader/progress"), timeout=120, pause=1)
    begin, end = (list(map(float, line.split())) for line in bed.out(SAMPLE, timeout=300).splitlines())
    if way.kind:
        _stop(bed, "reader")
    seconds, read, touched, swapped, requests = (after - before for before, after in zip(begin, end, strict=True))
    return Paces(read * PAGE / seconds, touched / seconds, swapped / seconds, requests / seconds)


def _start(bed: Virtual, name: str, command: str, *properties: str) -> None:
    words = " ".join(f"--property={one}" for one in (f"WorkingDirectory={FOLDER}/{name}", *properties))
    bed.run(f"systemd-run --quiet --collect --unit={name} {words} {command}", timeout=120)


def _stop(bed: Virtual, name: str) -> None:
    bed.run(f"systemctl kill --signal=KILL {name}; systemctl stop {name}; rm -f {FOLDER}/{name}/progress", timeout=300)


if __name__ == "__main__":
    sys.stdout.write("\n".join([*align_columns(measure(int((sys.argv[1:] or ["2"])[0])), indent=""), ""]))
