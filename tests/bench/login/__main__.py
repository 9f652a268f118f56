"""`python -m tests.bench.login`: measure the matrix, or what of it is asked for, and write table, picture and raw samples.

Rounds are outermost and set-ups in turn within each, so that what changes on the host hits all of them. What was measured is kept: with
--resume the next run goes on where this one was broken off, and --report measures nothing.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.bench.login import report
from tests.bench.login.cell import AFTER, Cell, measure
from tests.bench.login.setups import SETUPS
from vllm_safe.sizes import format_span

HERE = Path(__file__).parent
HOGS = ("anonymous", "leak", "reader", "forkbomb", "mlock")
BOOT, BETWEEN = 120.0, 20.0  # seconds, about: a machine with its set-up; around a cell
WORDS = """# Logins while a model server misbehaves

Made by `{command}`. A machine of {memory} MiB RAM with a swapfile of 6 GiB, 2 processors and a disk held to so many IOPS and 120 MiB/s;
each hog runs for {seconds:.0f} s. Raw samples: {folder}.

isol: share of ssh logins that take at most twice the idle p99, among people who log in at every moment. ssh, exec of a program not in the
cache, gap of a 100 ms heartbeat: seconds (median of the rounds / worst of all). stalled: the slice of the OS that stood still longest
for want of memory. killed: bystanders. back: seconds until a login is as when idle after the hog's end. hog/s: pages it touched or read.

{table}

![Logins over time]({picture})
"""


def main() -> int:
    """Exit code 0 when all that was asked for is measured."""
    options = _parse(sys.argv[1:])
    raw = options.out / "login-raw"
    if not options.resume and not options.report:
        shutil.rmtree(raw, ignore_errors=True)
    raw.mkdir(parents=True, exist_ok=True)
    cells = [] if options.report else [cell for cell in _cells(options) if not (raw / cell.file).exists()]
    machines = len({(cell.round, cell.setup) for cell in cells})
    guess = len(cells) * (options.seconds + AFTER + BETWEEN) + machines * BOOT
    print(f"{len(cells)} cells on {machines} machines: about {format_span(guess)}", flush=True)
    if options.plan:
        return 0
    for number in range(1, options.rounds + 1):
        for name in options.setups:
            _measure(name, [cell for cell in cells if (cell.round, cell.setup) == (number, name)], options, raw)
    _write(options, raw)
    return 0


def _parse(words: Sequence[str]) -> argparse.Namespace:
    def names(text: str) -> list[str]:
        return text.split(",")

    parser = argparse.ArgumentParser(prog="python -m tests.bench.login", description=__doc__)
    parser.add_argument("--setups", type=names, default=list(SETUPS), help=f"some of {','.join(SETUPS)}")
    parser.add_argument("--hogs", type=names, default=list(HOGS), help=f"some of {','.join(HOGS)}")
    parser.add_argument("--disk", type=lambda text: [int(part) for part in text.split(",")], default=[150, 50], help="IOPS")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long each hog runs")
    parser.add_argument("--memory", type=int, default=1024, help="MiB of the machine")
    parser.add_argument("--out", type=Path, default=HERE.parent, help="folder of RESULTS.md, login.svg and login-raw/")
    parser.add_argument("--resume", action="store_true", help="keep what was measured, and measure the rest")
    parser.add_argument("--report", action="store_true", help="measure nothing; write what the raw samples say")
    parser.add_argument("--plan", action="store_true", help="measure nothing; say how long it would take")
    options = parser.parse_args(words)
    for given, known in ((options.setups, SETUPS), (options.hogs, HOGS)):
        if unknown := set(given) - set(known):
            parser.error(f"unknown: {', '.join(sorted(unknown))}")
    return options


def _cells(options: argparse.Namespace) -> list[Cell]:
    return [
        Cell(name, hog, disk, number)
        for number in range(1, options.rounds + 1)
        for name in options.setups
        for disk in options.disk
        for hog in (options.hogs if SETUPS[name].hog else ["-"])
    ]


def _measure(name: str, cells: Sequence[Cell], options: argparse.Namespace, raw: Path) -> None:
    if not cells:
        return
    with SETUPS[name].boot(options.memory, {cell.hog for cell in cells}) as bed:
        for cell in cells:
            begin = time.monotonic()
            measure(bed, SETUPS[name], cell, options.seconds, raw)
            print(f"{cell.file}: {time.monotonic() - begin:.0f} s", flush=True)


def _write(options: argparse.Namespace, raw: Path) -> None:
    runs = sorted(report.load(raw), key=lambda run: list(SETUPS).index(run.cell.setup))
    rows = report.table(runs)
    text = "\n".join(f"| {' | '.join(row)} |" for row in (rows[0], ("---",) * len(rows[0]), *rows[1:]))
    hogs = [run.cell for run in runs if run.cell.setup != "idle"]
    if hogs:
        (options.out / "login.svg").write_text(report.picture(runs, hogs[0].hog, max(cell.disk for cell in hogs)))
    command = f"python -m tests.bench.login {shlex.join(sys.argv[1:])}"
    words = WORDS.format(
        command=command, memory=options.memory, seconds=options.seconds, folder="login-raw/", table=text, picture="login.svg"
    )
    (options.out / "RESULTS.md").write_text(words)
    print(text)


if __name__ == "__main__":
    sys.exit(main())
