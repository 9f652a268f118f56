"""`python -m tests.bench.login`: measure the matrix, or the selected part of it, and write the table, the picture and the samples.

Rounds are the outermost loop, with the set-ups in turn within each, so that a change on the host affects all of them. Results are kept: the
same command resumes where it was interrupted, --fresh begins anew, and --report measures nothing.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.beds.machine import BedError
from tests.bench.login import report
from tests.bench.login.cell import AFTER, LONGEST, PATIENCE, Cell, measure
from tests.bench.login.setups import HOGS, LOADS, SETUPS
from tests.bench.login.summary import Summary, reduce_samples
from vllm_safe.common.sizes import format_span

HERE = Path(__file__).parent
FILE, OF = "summary.jsonl", "login-raw"
BOOT, BETWEEN = 45.0, 15.0  # seconds, roughly: to boot a machine with its set-up; beside a cell's own time, if nothing hangs
WORDS = """# Logins while a model server misbehaves

Made by `{command}`. A machine of {memory} MiB RAM with a swapfile of 6 GiB, 2 processors and a disk held to so many IOPS and 120 MiB/s;
each hog runs for {seconds:.0f} s. Each cell: {summary}.

isol: share of ssh logins that take at most twice the idle p99 of their round, among people who log in at every moment. ssh, exec of a
program not in the cache, gap of a 100 ms heartbeat: seconds (median of the rounds / worst of all). stalled: the slice of the OS that stood
still longest for want of memory. killed: bystanders. back: seconds until a login is as when idle, from when the machine is told to end the
hog; `>`: not in the time that was measured. hog/s: pages it touched or read in the second half of its time; of plan: what that is of its
figure under the installation plan's recipe. alive: rounds at whose end it still ran. stuck: where the machine could not be told to
end the hog within {patience:.0f} s, and was switched off. A login that failed, or had not come through {patience:.0f} s after the hog's
time, counts as {longest:.0f} s. load: eight workers read a checkpoint through the loader's ring; load-vllm: like vLLM's own loader.

{table}
{missed}
![Logins over time]({picture})
"""


def main() -> int:
    """Measure. Return the exit code, which is 0 when all selected cells have been measured."""
    options = _parse(sys.argv[1:])
    if options.fresh and not options.report and not options.plan:
        shutil.rmtree(options.out / OF, ignore_errors=True)
        Summary(options.out / FILE, OF).save()
    summary = Summary.load(options.out / FILE, OF)
    _keep_shape(options, summary)
    cells = [] if options.report else [cell for cell in _cells(options) if cell not in summary.runs]
    machines = len({(cell.round, cell.setup) for cell in cells})
    guess = len(cells) * (options.seconds + AFTER + BETWEEN) + machines * BOOT
    print(f"{len(cells)} cells on {machines} machines: about {format_span(guess)}", flush=True)
    if options.plan:
        return 0
    missed = 0
    if cells:
        summary.raw.mkdir(parents=True, exist_ok=True)
    for number in options.rounds:
        for name in options.setups:
            missed += _measure(name, [cell for cell in cells if (cell.round, cell.setup) == (number, name)], options, summary)
            if summary.runs:
                _write(options, summary)  # whoever looks in between, or ends it, has what there is
    if options.report:
        _write(options, summary)
    if (options.out / "RESULTS.md").exists():
        print((options.out / "RESULTS.md").read_text())
    if missed:
        print(f"{missed} cells could not be measured: the same command again tries them", flush=True)
    return 1 if missed else 0


def _keep_shape(options: argparse.Namespace, summary: Summary) -> None:
    """Let nobody mix samples of two kinds: --report takes what was measured, anything else must be as it was."""
    shape = {"memory": options.memory, "seconds": options.seconds}
    kept = summary.shape or shape
    if options.report:
        options.memory, options.seconds = kept["memory"], kept["seconds"]
    elif kept != shape:
        sys.exit(f"{summary.path} was measured with {kept}, not with {shape}: --fresh throws it away, --out FOLDER keeps both")
    elif not options.plan:
        summary.shape = shape
        summary.save()


def _parse(words: Sequence[str]) -> argparse.Namespace:
    def names(text: str) -> list[str]:
        return text.split(",")

    parser = argparse.ArgumentParser(prog="python -m tests.bench.login", description=__doc__)
    parser.add_argument("--setups", type=names, default=list(SETUPS), help=f"some of {','.join(SETUPS)}")
    parser.add_argument("--hogs", type=names, default=list(HOGS), help=f"some of {','.join((*HOGS, *LOADS))}; without them, the first five")
    parser.add_argument("--disk", type=lambda text: [int(part) for part in text.split(",")], default=[150, 50], help="IOPS")
    parser.add_argument(
        "--rounds", type=_rounds, default=range(1, 4), help="how many; 3-4: these, of a day whose own idle they are compared with"
    )
    parser.add_argument("--seconds", type=float, default=50.0, help="how long each hog runs")
    parser.add_argument("--memory", type=int, default=1024, help="MiB of the machine")
    parser.add_argument("--out", type=Path, default=HERE.parent, help=f"folder of RESULTS.md, login.svg, {FILE} and {OF}/")
    parser.add_argument("--fresh", action="store_true", help="throw away what was measured")
    parser.add_argument("--report", action="store_true", help="measure nothing; write what was measured before")
    parser.add_argument("--plan", action="store_true", help="measure nothing; say how long it would take")
    options = parser.parse_args(words)
    for given, known in ((options.setups, SETUPS), (options.hogs, (*HOGS, *LOADS))):
        if unknown := set(given) - set(known):
            parser.error(f"unknown: {', '.join(sorted(unknown))}")
    return options


def _rounds(text: str) -> range:
    first, _, last = text.rpartition("-")
    return range(int(first or 1), int(last) + 1)


def _cells(options: argparse.Namespace) -> list[Cell]:
    return [
        Cell(name, hog, disk, number)
        for number in options.rounds
        for name in options.setups
        for disk in options.disk
        for hog in (options.hogs if SETUPS[name].hog else ["-"])
    ]


def _measure(name: str, cells: Sequence[Cell], options: argparse.Namespace, summary: Summary) -> int:
    """All of them on one machine, or on a fresh one after a cell that could not be measured. How many could not."""
    rest, missed = list(cells), 0
    while rest:
        cell = rest[0]
        try:
            with SETUPS[name].boot(options.memory, {cell.hog for cell in rest}) as bed:
                while rest:
                    cell, begin = rest.pop(0), time.monotonic()
                    try:
                        measure(bed, SETUPS[name], cell, options.seconds, summary.raw)
                    finally:  # a machine that was stuck is a result, too
                        if (summary.raw / cell.file).exists():
                            summary.add(reduce_samples(cell, summary.raw / cell.file))
                    print(f"{cell.name}: {time.monotonic() - begin:.0f} s", flush=True)
        except (BedError, subprocess.SubprocessError) as error:
            print(f"{cell.name}: {error}", flush=True)
            if cell in rest:  # no machine: the set-up is not what it says
                return missed + len(rest)
            if cell not in summary.runs:
                missed += 1
                summary.miss(cell, f"{error}".partition("\n")[0])
    return missed


def _write(options: argparse.Namespace, summary: Summary) -> None:
    summary.save()
    runs = sorted(summary.runs.values(), key=lambda run: list(SETUPS).index(run.cell.setup))
    hogs = [run.cell for run in runs if run.cell.setup != "idle"]
    if hogs:
        (options.out / "login.svg").write_text(report.picture(runs, hogs[0].hog, max(cell.disk for cell in hogs)))
    command = f"python -m tests.bench.login --memory {options.memory} --seconds {options.seconds:.0f}"
    words = WORDS.format(
        command=command,
        memory=options.memory,
        seconds=options.seconds,
        patience=PATIENCE,
        longest=LONGEST,
        summary=FILE,
        table=report.markdown(report.table(runs)),
        missed="".join(
            f"\nNot measured: {cell.name}: {why}\n" for cell, why in sorted(summary.missed.items(), key=lambda item: item[0].name)
        ),
        picture="login.svg",
    )
    (options.out / "RESULTS.md").write_text(words)


if __name__ == "__main__":
    sys.exit(main())
