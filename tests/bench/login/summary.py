"""The summary of the measured cells: one line of tests/bench/summary.jsonl for each, in place of its raw samples.

A line has all that the table and the picture need. Raw samples stay where they were measured, ignored by git, until somebody deletes
them.
"""

from __future__ import annotations

import csv
import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self

from tests.bench.login.cell import LONGEST, Cell
from vllm_safe.drill.login_probes import SLICES


class Login(NamedTuple):
    """One login: when it began, in seconds since the hog's start, how long it took, and whether it came through."""

    at: float
    took: float
    good: bool

    @property
    def felt(self) -> float:
        """Seconds. A login that failed lasted for ever."""
        return self.took if self.good else LONGEST


@dataclass(frozen=True)
class Run:
    """One cell that was measured. Times in seconds; of what is worst, the worst while the hog ran."""

    cell: Cell
    end: float  # when the machine was told to end the hog
    logins: tuple[Login, ...]
    program: float  # the slowest exec of a program that was not in the cache
    gap: float  # the longest of a 100 ms heartbeat
    stalled: float  # share of the time, of the slice of the OS that stood still longest
    pace: float  # pages a second in the second half of the hog's time: the first is for filling what it then touches
    alive: float | None  # whether the hog still ran at the end; None where the machine could not be told to end it
    bystanders: float | None  # how many were killed; None if unknown

    def during(self) -> list[Login]:
        """Return the logins that began while the hog ran."""
        return [login for login in self.logins if login.at < self.end]

    def after(self) -> list[Login]:
        """Return the logins that began after it was to end."""
        return [login for login in self.logins if login.at >= self.end]


def reduce_samples(cell: Cell, path: Path) -> Run:
    """Read the raw samples of a cell: lines `seconds since the hog's start,what,value`."""
    with path.open(newline="") as file:
        rows = [(float(at), what, float(value)) for at, what, value in csv.reader(file)]
    end = next((at for at, what, _ in rows if what == "end"), 0.0)
    once = {what: value for _, what, value in reversed(rows)}

    def during(*names: str) -> list[float]:
        return [LONGEST if what.startswith("failed") else value for at, what, value in rows if what in names and at < end]

    counts = [(at, value) for at, what, value in rows if what == "progress" and end / 2 <= at < end]
    return Run(
        cell,
        end,
        tuple(Login(at, value, what == "ssh") for at, what, value in rows if what in {"ssh", "failed ssh"}),
        program=max(during("program", "failed program"), default=0.0),
        gap=max(during("gap"), default=0.0),
        stalled=max(statistics.fmean(during(f"stall:{unit}") or [0.0]) for unit in SLICES),
        pace=(counts[-1][1] - counts[0][1]) / (end - counts[0][0]) if counts else 0.0,  # one that was killed makes no more
        alive=once.get("alive"),
        bystanders=once.get("bystanders"),
    )


@dataclass
class Summary:
    """The cells of one kind (`of`: the name of the folder of their raw samples), kept beside those of other kinds in one file."""

    path: Path
    of: str
    shape: dict[str, float] = field(default_factory=dict)  # of the machine and the measurement, where it is kept
    runs: dict[Cell, Run] = field(default_factory=dict)
    missed: dict[Cell, str] = field(default_factory=dict)  # why one could not be measured

    @classmethod
    def load(cls, path: Path, of: str) -> Self:
        """Load what is kept, with the raw samples beside the file, which go before it."""
        summary = cls(path, of)
        for line in _lines(path):
            if line.pop("of") == of:
                summary._take(line)
        for raw in sorted(summary.raw.glob("[!.]*.csv")):
            summary.add(reduce_samples(_cell(raw.name.removesuffix(".csv")), raw))
        return summary

    @property
    def raw(self) -> Path:
        """The folder of the raw samples."""
        return self.path.parent / self.of

    def add(self, run: Run) -> None:
        """Keep a cell that was measured."""
        self.missed.pop(run.cell, None)
        self.runs[run.cell] = run

    def miss(self, cell: Cell, why: str) -> None:
        """Keep why a cell could not be measured."""
        if cell not in self.runs:
            self.missed[cell] = why

    def save(self) -> None:
        """Write the file, with the lines of other kinds as they are."""
        others = [line for line in _lines(self.path) if line["of"] != self.of]
        ours = sorted(self._ours(), key=lambda line: str(line.get("cell", "")))
        text = "".join(
            f"{json.dumps(line, separators=(',', ':'))}\n" for line in sorted([*others, *ours], key=lambda line: str(line["of"]))
        )
        partial = self.path.with_name(f".{self.path.name}")
        partial.write_text(text)
        partial.rename(self.path)

    def _take(self, line: dict[str, Any]) -> None:
        if "cell" not in line:
            self.shape = line
            return
        cell = _cell(line.pop("cell"))
        if "missed" in line:
            self.missed[cell] = line["missed"]
        else:
            logins = [Login(at, took, good=True) for at, took in line.pop("logins")]
            logins += (Login(at, took, good=False) for at, took in line.pop("failed", ()))
            self.runs[cell] = Run(cell, logins=tuple(sorted(logins)), **line)

    def _ours(self) -> Iterable[dict[str, Any]]:
        if self.shape:
            yield {"of": self.of, **self.shape}
        for cell, why in self.missed.items():
            yield {"of": self.of, "cell": cell.name, "missed": why}
        for run in self.runs.values():
            failed = _pairs(login for login in run.logins if not login.good)
            figures = {name: value for name, value in vars(run).items() if name not in {"cell", "logins"}}
            logins = {"logins": _pairs(login for login in run.logins if login.good)} | ({"failed": failed} if failed else {})
            yield {"of": self.of, "cell": run.cell.name, **figures, **logins}


def _pairs(logins: Iterable[Login]) -> Sequence[tuple[float, float]]:
    return [(login.at, login.took) for login in logins]


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _cell(name: str) -> Cell:
    setup, hog, disk, number = name.split(".")
    return Cell(setup, hog, int(disk), int(number))
