"""`python -m tests.bench.login`: measure the matrix, or the selected part of it, and write the table, the picture and the samples.

Rounds are the outermost loop, with the set-ups in turn within each, so that a change on the host affects all of them. Results are kept: the
same command resumes where it was interrupted, --fresh begins anew, and --report measures nothing.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.beds.machine import BedError
from tests.bench.login import report
from tests.bench.login.cell import AFTER, LONGEST, PATIENCE, Cell, measure
from tests.bench.login.setups import SETUPS
from vllm_safe.common.sizes import format_span

HERE = Path(__file__).parent
HOGS = ("anonymous", "leak", "reader", "forkbomb", "mlock")
BOOT, BETWEEN = 45.0, 15.0  # seconds, roughly: to boot a machine with its set-up; beside a cell's own time, if nothing hangs
WORDS = """# Logins while a model server misbehaves

Made by `{command}`. A machine of {memory} MiB RAM with a swapfile of 6 GiB, 2 processors and a disk held to so many IOPS and 120 MiB/s;
each hog runs for {seconds:.0f} s. Raw samples: {folder}.

isol: share of ssh logins that take at most twice the idle p99 of their round, among people who log in at every moment. ssh, exec of a
program not in the cache, gap of a 100 ms heartbeat: seconds (median of the rounds / worst of all). stalled: the slice of the OS that stood
still longest for want of memory. killed: bystanders. back: seconds until a login is as when idle, from when the machine is told to end the
hog; `>`: not in the time that was measured. hog/s: pages it touched or read in the second half of its time; of plan: what that is of its
figure under the installation plan's recipe. alive: rounds at whose end it still ran. stuck: where the machine could not be told to
end the hog within {patience:.0f} s, and was switched off. A login that failed, or had not come through {patience:.0f} s after the hog's
time, counts as {longest:.0f} s.

{table}
{missed}
![Logins over time]({picture})
"""


def main() -> int:
    """Measure. Return the exit code, which is 0 when all selected cells have been measured."""
    options = _parse(sys.argv[1:])
    raw = options.out / "login-raw"
    if options.fresh and not options.report and not options.plan:
        shutil.rmtree(raw, ignore_errors=True)
    raw.mkdir(parents=True, exist_ok=True)
    _keep_shape(options, raw / "shape.json")
    cells = [] if options.report else [cell for cell in _cells(options) if not (raw / cell.file).exists()]
    machines = len({(cell.round, cell.setup) for cell in cells})
    guess = len(cells) * (options.seconds + AFTER + BETWEEN) + machines * BOOT
    print(f"{len(cells)} cells on {machines} machines: about {format_span(guess)}", flush=True)
    if options.plan:
        return 0
    missed = 0
    for number in options.rounds:
        for name in options.setups:
            missed += _measure(name, [cell for cell in cells if (cell.round, cell.setup) == (number, name)], options, raw)
            if any(raw.glob("[!.]*.csv")):
                _write(options, raw)  # whoever looks in between, or ends it, has what there is
    if options.report:
        _write(options, raw)
    if (options.out / "RESULTS.md").exists():
        print((options.out / "RESULTS.md").read_text())
    if missed:
        print(f"{missed} cells could not be measured: the same command again tries them", flush=True)
    return 1 if missed else 0


def _keep_shape(options: argparse.Namespace, path: Path) -> None:
    """Prevent a mix of samples of two kinds: --report uses what was measured, anything else must have the same parameters."""
    shape = {"memory": options.memory, "seconds": options.seconds}
    kept = json.loads(path.read_text()) if path.exists() else shape
    if options.report:
        options.memory, options.seconds = kept["memory"], kept["seconds"]
    elif kept != shape:
        sys.exit(f"{path.parent} was measured with {kept}, not with {shape}: --fresh throws it away, --out FOLDER keeps both")
    elif not options.plan:
        path.write_text(json.dumps(shape) + "\n")


def _parse(words: Sequence[str]) -> argparse.Namespace:
    def names(text: str) -> list[str]:
        return text.split(",")

    parser = argparse.ArgumentParser(prog="python -m tests.bench.login", description=__doc__)
    parser.add_argument("--setups", type=names, default=list(SETUPS), help=f"some of {','.join(SETUPS)}")
    parser.add_argument("--hogs", type=names, default=list(HOGS), help=f"some of {','.join(HOGS)}")
    parser.add_argument("--disk", type=lambda text: [int(part) for part in text.split(",")], default=[150, 50], help="IOPS")
    parser.add_argument(
        "--rounds", type=_rounds, default=range(1, 4), help="how many; 3-4: these, of a day whose own idle they are compared with"
    )
    parser.add_argument("--seconds", type=float, default=50.0, help="how long each hog runs")
    parser.add_argument("--memory", type=int, default=1024, help="MiB of the machine")
    parser.add_argument("--out", type=Path, default=HERE.parent, help="folder of RESULTS.md, login.svg and login-raw/")
    parser.add_argument("--fresh", action="store_true", help="throw away what was measured")
    parser.add_argument("--report", action="store_true", help="measure nothing; write what the raw samples say")
    parser.add_argument("--plan", action="store_true", help="measure nothing; say how long it would take")
    options = parser.parse_args(words)
    for given, known in ((options.setups, SETUPS), (options.hogs, HOGS)):
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


def _measure(name: str, cells: Sequence[Cell], options: argparse.Namespace, raw: Path) -> int:
    """Measure all cells on one machine, or on a new one after a cell that could not be measured. Return how many could not."""
    rest, missed = list(cells), 0
    while rest:
        cell = rest[0]
        try:
            with SETUPS[name].boot(options.memory, {cell.hog for cell in rest}) as bed:
                while rest:
                    cell, begin = rest.pop(0), time.monotonic()
                    (raw / f"{cell.file}.missed").unlink(missing_ok=True)
                    measure(bed, SETUPS[name], cell, options.seconds, raw)
                    print(f"{cell.file}: {time.monotonic() - begin:.0f} s", flush=True)
        except (BedError, subprocess.SubprocessError) as error:
            print(f"{cell.file}: {error}", flush=True)
            if cell in rest:  # there was no machine: its set-up is not what it should be
                return missed + len(rest)
            if not (raw / cell.file).exists():
                missed += 1
                (raw / f"{cell.file}.missed").write_text(f"{error}".partition("\n")[0] + "\n")
    return missed


def _write(options: argparse.Namespace, raw: Path) -> None:
    runs = sorted(report.load(raw), key=lambda run: list(SETUPS).index(run.cell.setup))
    text = report.markdown(report.table(runs))
    hogs = [run.cell for run in runs if run.cell.setup != "idle"]
    if hogs:
        (options.out / "login.svg").write_text(report.picture(runs, hogs[0].hog, max(cell.disk for cell in hogs)))
    missed = sorted(raw.glob("*.missed"))
    command = f"python -m tests.bench.login --memory {options.memory} --seconds {options.seconds:.0f}"
    words = WORDS.format(
        command=command,
        memory=options.memory,
        seconds=options.seconds,
        patience=PATIENCE,
        longest=LONGEST,
        folder="login-raw/",
        table=text,
        missed="".join(f"\nNot measured: {path.name.removesuffix('.csv.missed')}: {path.read_text()}" for path in missed),
        picture="login.svg",
    )
    (options.out / "RESULTS.md").write_text(words)


if __name__ == "__main__":
    sys.exit(main())
