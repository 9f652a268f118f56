"""The results of one tier that the runner has received, and the tables made of them. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

PHASES = ("setup", "call", "teardown")
SLOWEST = 20


class Finished(NamedTuple):
    """A test that has ended: "passed", "failed" or "skipped", how long it took, and why if it did not pass."""

    test: str
    outcome: str
    seconds: float  # of the clock, setup and teardown included
    processor: float  # seconds on processors, the machines' included
    text: str

    @property
    def reason(self) -> str:
        """The first line of the error in what pytest printed, or the last line of it all."""
        lines = [line.strip() for line in self.text.splitlines() if line.strip()]
        errors = [line.removeprefix("E").strip() for line in lines if line.startswith("E  ")]
        return next(iter(errors or lines[-1:]), "")


@dataclass
class Results:
    """One tier so far."""

    total: int = 0
    _ended: dict[str, Finished] = field(default_factory=dict)
    _phases: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def hear(self, said: dict[str, Any]) -> Finished | None:
        """Take in one line of the plugin. Returns the test that it ends, if it does."""
        if "total" in said:
            self.total = said["total"]
            return None
        phases = self._phases.setdefault(said["test"], [])
        phases.append(said)
        if said["when"] in PHASES[:2]:  # the phase of a test whose worker has died has another name, and is its last
            return None
        del self._phases[said["test"]]
        outcomes = [phase["outcome"] for phase in phases]
        outcome = next((worst for worst in ("failed", "skipped") if worst in outcomes), "passed")
        seconds, processor = (sum(phase[name] for phase in phases) for name in ("seconds", "processor"))
        text = "\n".join(phase["text"] for phase in phases if phase["text"])
        finished = self._ended[said["test"]] = Finished(said["test"], outcome, seconds, processor, text)
        return finished

    @property
    def finished(self) -> list[Finished]:
        """The tests that have ended, each once: xdist tries one whose worker died again."""
        return list(self._ended.values())

    @property
    def failed(self) -> list[Finished]:
        """The tests that failed."""
        return [test for test in self.finished if test.outcome == "failed"]

    def counts(self) -> str:
        """Return the number of tests of each outcome: "64 passed, 1 failed, 1 not run"."""
        counted = Counter(test.outcome for test in self.finished)
        counted["not run"] = max(0, self.total - len(self.finished))
        return ", ".join(f"{counted[outcome]} {outcome}" for outcome in ("passed", "failed", "skipped", "not run") if counted[outcome])


def progress(results: dict[str, Results], seconds: float) -> str:
    """How far all tiers are: "vm 12/66, nspawn 80/197, 9 min"."""
    tiers = (f"{name} {len(of.finished)}/{of.total or '?'}" for name, of in results.items())
    return f"{', '.join(tiers)}, {seconds / 60:.0f} min"


def module(test: str) -> str:
    """Return the file of a test, without its folder and suffix."""
    return test.partition("::")[0].rpartition("/")[2].removesuffix(".py")


def short(test: str) -> str:
    """Return the name of a test without the folder of its file."""
    file, separator, name = test.partition("::")
    return f"{file.rpartition('/')[2]}{separator}{name}"


def costs(results: dict[str, Results]) -> list[str]:
    """Return the table of what the time went to: each tier, its modules, and the slowest tests."""
    lines = [f"{'tier':8} {'module':20} {'tests':>5} {'minutes':>8} {'processor':>10}"]
    for name, of in results.items():
        lines.append(_row(name, "", of.finished))
        modules = sorted({module(test.test) for test in of.finished})
        rows = {each: [test for test in of.finished if module(test.test) == each] for each in modules}
        lines += [_row("", each, rows[each]) for each in sorted(rows, key=lambda each: -_seconds(rows[each]))]
    everything = [(test, name) for name, of in results.items() for test in of.finished]
    slowest = sorted(everything, key=lambda pair: -pair[0].seconds)[:SLOWEST]
    lines += ["", f"{'seconds':>7} {'processor':>9}  slowest tests, with setup and teardown"]
    lines += [f"{test.seconds:7.0f} {test.processor:9.0f}  {name} {short(test.test)}" for test, name in slowest]
    return lines


def _seconds(tests: Iterable[Finished]) -> float:
    return sum(test.seconds for test in tests)


def _row(tier: str, of: str, tests: Sequence[Finished]) -> str:
    processor = sum(test.processor for test in tests)
    return f"{tier:8} {of:20} {len(tests):5} {_seconds(tests) / 60:8.1f} {processor / 60:10.1f}"
