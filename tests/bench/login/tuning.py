"""`python -m tests.bench.login.tuning`: measure which of the kernel's settings help a login beside a hog under vllm-safe's limits.

All run on one machine, in turn in each round, so that a change on the host affects all of them. Each is turned on before its cell and off
after it. The results are in tests/bench/DISK.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tests.beds.machine import BedError
from tests.beds.vm import Virtual
from tests.bench.login import report
from tests.bench.login.cell import Cell, measure
from tests.bench.login.setups import SETUPS
from tests.bench.login.summary import Summary, reduce_samples

HERE = Path(__file__).parent
SCHEDULER = "/sys/block/vda/queue/scheduler"
DISK = "$(cat /sys/block/vda/dev)"
GROUPS = "/sys/fs/cgroup"
LRU = "/sys/kernel/mm/lru_gen"
OURS = "/usr/lib/vllm-safe/lib/python3/site-packages/vllm_safe"
ZSWAP = "/sys/module/zswap/parameters"
DROP_IN = "/run/systemd/system/vllm@hog.service.d/tuning.conf"
LINEAR = "rbps=125829120 rseqiops=150 rrandiops=150 wbps=125829120 wseqiops=150 wrandiops=150"


@dataclass(frozen=True)
class Tuning:
    """Shell commands that turn a setting on, and back to Debian's default."""

    on: str = "true"
    off: str = "true"


def _sysctl(name: str, value: int, before: int) -> Tuning:
    return Tuning(f"sysctl -qw {name}={value}", f"sysctl -qw {name}={before}")


def _of_the_hog(*lines: str) -> Tuning:
    text = "\\n".join(("[Service]", *lines))
    return Tuning(
        f"mkdir -p $(dirname {DROP_IN}) && printf '{text}\\n' > {DROP_IN} && systemctl daemon-reload",
        f"rm {DROP_IN} && systemctl daemon-reload",
    )


def _patch(file: str, before: str, after: str) -> Tuning:
    return Tuning(f"grep -q '{before}' {file} && sed -i 's/{before}/{after}/' {file}", f"sed -i 's/{after}/{before}/' {file}")


def _of_the_disk(name: str, value: int) -> Tuning:
    path, before = f"/sys/block/vda/queue/{name}", f"/run/{name.replace('/', '-')}"
    return Tuning(f"cat {path} > {before} && echo {value} > {path}", f"cat {before} > {path}")


TUNINGS = {
    "shipped": Tuning(),
    "no-kernel-share": _patch(f"{OURS}/decide/protect.py", "self.kernel.value + self.cards", "self.kernel.value \\* 0 + self.cards"),
    "no-each-unit": _patch(f"{OURS}/decide/protect.py", "system \\/\\/ EACH_UNIT", "system \\* 0"),
    # The state after a download or a backup: a page cache full of other files than sshd's.
    "full-cache": Tuning("head -c 1000M /dev/zero > /srv/hog-cache && sync", "rm /srv/hog-cache"),
    "calm-5": _patch(f"{OURS}/guard/guard_decision.py", "CALM = 20.0", "CALM = 5.0"),
    "no-guard": Tuning("systemctl mask --runtime --now vllm-safe-guard", "systemctl unmask --runtime vllm-safe-guard"),
    "bfq": Tuning(f"modprobe bfq && echo bfq > {SCHEDULER}", f"echo mq-deadline > {SCHEDULER}"),
    "io-cost": Tuning(
        f'echo "{DISK} ctrl=user model=linear {LINEAR}" > {GROUPS}/io.cost.model && echo "{DISK} enable=1" > {GROUPS}/io.cost.qos',
        f'echo "{DISK} enable=0" > {GROUPS}/io.cost.qos',
    ),
    "io-max-75": _of_the_hog("IOReadIOPSMax=/dev/vda 75", "IOWriteIOPSMax=/dev/vda 75"),
    "io-max-reads-75": _of_the_hog("IOReadIOPSMax=/dev/vda 75"),
    "guard-no-class": _patch(f"{OURS}/guard/guard_actions.py", '"idle"', '"best-effort"'),
    "io-idle": _patch(f"{OURS}/config/settings.py", '"best-effort",', '"idle",'),
    "nr-requests-1024": _of_the_disk("nr_requests", 1024),
    "async-depth-4": _of_the_disk("iosched/async_depth", 4),
    "fifo-batch-1": _of_the_disk("iosched/fifo_batch", 1),
    "writes-starved-8": _of_the_disk("iosched/writes_starved", 8),
    "no-wbt": _of_the_disk("wbt_lat_usec", 0),
    "zswap": Tuning(f"echo zsmalloc > {ZSWAP}/zpool; echo Y > {ZSWAP}/enabled", f"echo N > {ZSWAP}/enabled"),
    "page-cluster-0": _sysctl("vm.page-cluster", 0, 3),
    "swappiness-10": _sysctl("vm.swappiness", 10, 60),
    "swappiness-150": _sysctl("vm.swappiness", 150, 60),
    "watermark-300": _sysctl("vm.watermark_scale_factor", 300, 10),
    "mglru": Tuning(),  # shipped since this measurement
    "no-mglru": Tuning("systemctl mask --runtime --now vllm-safe-tunables", "systemctl unmask --runtime vllm-safe-tunables"),
    "min-ttl-1000": Tuning(f"echo 1000 > {LRU}/min_ttl_ms", f"echo 0 > {LRU}/min_ttl_ms"),
    "memory-high-600": _of_the_hog("MemoryHigh=600M"),
}


def main() -> int:
    """Measure. Return the exit code, which is 0 when all selected cells have been measured."""
    options = _parse(sys.argv[1:])
    summary = Summary.load(options.out.parent / "summary.jsonl", options.out.name)
    cells = [
        Cell(name, hog, disk, number)
        for number in range(1, options.rounds + 1)
        for disk in options.disk
        for name in ("idle", *options.tunings)
        for hog in (options.hogs if name != "idle" else ["-"])
    ]
    rest = [cell for cell in cells if cell not in summary.runs]
    if rest:
        summary.raw.mkdir(parents=True, exist_ok=True)
    while rest:
        try:
            with SETUPS["vllm-safe"].boot(options.memory, set(options.hogs)) as bed:
                while rest:
                    cell = rest.pop(0)
                    try:
                        _measure(bed, cell, options)
                    finally:  # a machine that was stuck is a result, too
                        if (summary.raw / cell.file).exists():
                            summary.add(reduce_samples(cell, summary.raw / cell.file))
                            summary.save()
                    print(cell.name, flush=True)
        except BedError as error:
            print(f"{cell.name}: {error}", flush=True)
    runs = sorted(summary.runs.values(), key=lambda run: [["idle", *TUNINGS].index(name) for name in run.cell.setup.split("+")])
    print(report.markdown(report.table(runs)))
    return 0 if summary.runs.keys() >= set(cells) else 1


def _measure(bed: Virtual, cell: Cell, options: argparse.Namespace) -> None:
    setup = SETUPS["vllm-safe"]
    tunings = [TUNINGS[name] for name in cell.setup.split("+") if cell.hog != "-"]
    for tuning in tunings:
        bed.run(tuning.on)
    try:
        measure(bed, setup if cell.hog != "-" else replace(setup, hog=False), cell, options.seconds, options.out)
    finally:
        for tuning in tunings:
            bed.run(tuning.off, timeout=300)


def _parse(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.login.tuning", description=__doc__)
    parser.add_argument(
        "--tunings", type=lambda text: text.split(","), default=list(TUNINGS), help=f"some of {','.join(TUNINGS)}; A+B is both"
    )
    parser.add_argument("--hogs", type=lambda text: text.split(","), default=["anonymous"])
    parser.add_argument("--disk", type=lambda text: [int(part) for part in text.split(",")], default=[150], help="IOPS")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=50.0, help="how long each hog runs")
    parser.add_argument("--memory", type=int, default=1024, help="MiB of the machine")
    parser.add_argument(
        "--out",
        type=Path,
        default=HERE.parent / "tuning",
        help="raw samples; ../summary.jsonl keeps what they say, by the name of the folder",
    )
    return parser.parse_args(words)


if __name__ == "__main__":
    sys.exit(main())
