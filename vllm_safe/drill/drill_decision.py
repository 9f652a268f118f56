"""The drill's decisions: the size of the hog, whether it may run on this machine, and the verdict on its samples."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from vllm_safe.common.findings import Finding, failed, passed
from vllm_safe.common.sizes import MIB, format_size
from vllm_safe.decide.limits import LEAST_MEMORY, Budget, DecidedLimits
from vllm_safe.drill.login_probes import EVERY, GAP, LOGIN, LONGEST, SLICES, SSH, STALL, ProbeSample
from vllm_safe.host.host_facts import Host

# Additional seconds that a person does not mind, however fast the idle machine is. Without them, a login of 60 ms after 30 ms would fail.
SLACK_USUAL = 1.0  # seconds
SLACK_WORST = 10.0  # seconds; sshd gives up a login after 120 s, people earlier
LEAST_SHARE = 0.9  # of logins must be about as fast as on the idle machine; Meta's resctl-bench requires it of a minute's samples
MOST_STALLED = 0.1  # of the time, at most, may the operating system be stalled on memory
LEAST_PRESSED = 0.5  # of the time, at least, must the hog be near its limit; less shows nothing
_INTERPRETER = 16 * MIB  # RAM of each of the hog's processes beside what it touches; in total at most an eighth of the hog's memory


class Hog(NamedTuple):
    """The hog: `size` bytes to touch in `processes` processes. It presses once it has `full` bytes of RAM and swap together."""

    size: int
    processes: int
    full: int


def decide_hog(limits: DecidedLimits, cpus: int) -> Hog:
    """Decide the size of the hog: twice its RAM limit, so that every other touch is of swap, or its RAM and three quarters of its swap.

    The smaller of the two is used: the hog must not be killed for reaching its own limits.
    """
    ram, swap = limits.memory_max.value, limits.swap_max.value
    room = min(2 * ram, ram + swap * 3 // 4) * 95 // 100
    processes = max(1, min(max(4, cpus), limits.tasks_max.value - 1, room // (8 * _INTERPRETER)))
    # `full` is a share of the limit, not of what the hog touches: a hog that is too small for its limit never presses, and the drill fails.
    return Hog(max(0, room - processes * _INTERPRETER), processes, ram * 3 // 4)


def check_ready(budget: Budget, host: Host, occupants: Sequence[str], pressed: float | None) -> Finding:
    """Check that the machine has memory to spare. `pressed`: the share (0 to 1) of the last ten seconds that tasks waited for memory."""
    if occupants:
        return failed(f"{occupants[0]} is running, and the drill runs in its place", f"systemctl stop {occupants[0]}")
    kept = budget.protection.total + LEAST_MEMORY
    if host.memory_available < kept:
        what = f"not enough memory is free: {format_size(host.memory_available)} available, {format_size(kept)} needed"
        return failed(what, "Stop the programs that use it: ps aux --sort=-rss | head")
    if 2 * host.swap_used > host.swap:
        what = f"more than half of the swap is in use: {format_size(host.swap_used)} of {format_size(host.swap)}"
        return failed(what, "Stop the programs that use it, or increase swap.size in config.yaml")
    if pressed is not None and pressed > 0.1:
        return failed(f"tasks waited for memory in {pressed:.0%} of the last ten seconds", "Wait, or stop what uses memory: top -o RES")
    return passed("enough memory is free")


@dataclass(frozen=True)
class DrillRow:
    """One row of the table: a figure of the idle machine and of the drill (None: not measured), with its bounds if it has any."""

    what: str
    unit: str  # "s", "%" (of a share, 0 to 1) or "" (a count)
    idle: float | None
    drill: float | None
    least: float | None = None
    most: float | None = None

    @property
    def met(self) -> bool:
        """Whether the figure keeps its bounds. A figure with a bound that could not be measured does not."""
        if self.least is None and self.most is None:
            return True
        low, high = -math.inf if self.least is None else self.least, math.inf if self.most is None else self.most
        return self.drill is not None and low <= self.drill <= high

    def cells(self) -> tuple[str, ...]:
        """Return the row as text: what, idle, drill, bound, verdict."""
        bound = f">= {_text(self.least, self.unit)}" if self.least is not None else f"<= {_text(self.most, self.unit)}"
        bounded = self.least is not None or self.most is not None
        word = ("met" if self.met else "FAILED") if bounded else ""
        return (self.what, _text(self.idle, self.unit), _text(self.drill, self.unit), bound if bounded else "", word)


class DrillSamples(NamedTuple):
    """The samples of one part of the drill. Those beside the hog include the time in which it fills its memory, before `since`."""

    samples: Sequence[ProbeSample]
    failed: Sequence[ProbeSample] = ()  # logins that failed
    since: float = -math.inf  # seconds since boot, when the hog began to press
    until: float = math.inf  # seconds since boot, when the hog was last seen

    def values(self, what: str) -> list[float]:
        """Return the figures of one kind, in the order in which they were taken."""
        return [sample.value for sample in self.samples if sample.what == what]

    def pressed(self, what: str) -> list[float]:
        """Return the figures of one kind, for logins that were running when the hog began to press, or later."""
        return [sample.value for sample in self.samples if sample.what == what and sample.at + sample.value >= self.since]

    def share(self, what: str) -> float | None:
        """Return the mean of the samples of shares over the time in which the hog pressed; None without samples of that time."""
        part = total = 0.0
        for sample in self.samples:
            if sample.what == what:  # the sample in which the pressing began can be long, on a machine that stands still
                seconds = max(0.0, min(sample.at, self.until) - max(sample.at - sample.span, self.since))
                part, total = part + seconds * sample.value, total + seconds
        return part / total if total else None

    def failures(self, what: str) -> int:
        """Return how many samples of one kind failed."""
        return sum(sample.what == what for sample in self.failed)


class HogPressure(NamedTuple):
    """The hog's activity: the shares of the drill in which it was near its limit and was alive, and the number of pages it touched."""

    near: float = 1.0
    lived: float = 1.0
    pages: int = 1


def judge_drill(idle: DrillSamples, drill: DrillSamples, hog: HogPressure) -> tuple[DrillRow, ...]:
    """Return the table of figures with their verdicts.

    Shares are of the time in which the hog pressed, since the quiet time before would dilute them. Worst values are of the whole drill.
    """
    lines = [*_logins("login", LOGIN, idle, drill)]
    if idle.values(SSH):
        lines += _logins("ssh to localhost", SSH, idle, drill)
    beat = max(idle.values(GAP), default=0.0)
    lines.append(
        DrillRow("longest gap of a 0.1 s heartbeat", "s", beat or None, _most(drill.values(GAP)), most=_slower(beat, SLACK_WORST / 2))
    )
    for unit in SLICES:
        before, after = (part.share(f"{STALL}:{unit}") for part in (idle, drill))
        if after is not None:
            lines.append(DrillRow(f"{unit} stalled for memory", "%", before, after, most=MOST_STALLED))
    lines.append(DrillRow("time with the hog near its limit", "%", None, hog.near, least=LEAST_PRESSED))
    # Whether the guard or the kernel killed the hog: that protected the machine, but it would have killed the model.
    lines.append(DrillRow("time that the hog lived", "%", None, hog.lived, least=1.0))
    lines.append(DrillRow("pages that the hog touched", "", None, hog.pages, least=1))
    return tuple(lines)


def bound_usual(idle: DrillSamples, what: str = LOGIN) -> float:
    """Return the seconds up to which a login counts as about as fast as on the idle machine."""
    return _slower(percentile(idle.values(what), 99), SLACK_USUAL)


def _logins(name: str, what: str, idle: DrillSamples, drill: DrillSamples) -> Iterable[DrillRow]:
    usual = bound_usual(idle, what)
    worst = max(idle.values(what), default=0.0)
    every = max(EVERY, worst)
    before, after = (compare_latency(part.pressed(what), every) for part in (idle, drill))
    missed = drill.failures(what)
    after += [LONGEST] * missed
    yield DrillRow(f"{name}: median", "s", percentile(before, 50) if before else None, percentile(after, 50) if after else None)
    yield DrillRow(f"{name}: worst", "s", worst or None, _most([*drill.values(what), *after]), most=_slower(worst, SLACK_WORST))
    yield DrillRow(f"{name}: share within {usual:.1f} s", "%", share_within(before, usual), share_within(after, usual), least=LEAST_SHARE)
    if missed:
        yield DrillRow(f"{name}: failed", "", idle.failures(what), missed, most=0)


def compare_latency(seconds: Iterable[float], every: float) -> list[float]:
    """Return the waiting times of people who log in at moments `every` seconds apart.

    One login of 10 s is not one slow login among many fast ones: a person who came 4 s after it began waited for 6 s.
    """
    waits = []
    for wait in seconds:
        waits += [wait - number * every for number in range(max(1, math.ceil(wait / every)))]
    return waits


def share_within(seconds: Sequence[float], bound: float) -> float | None:
    """Return the share (0 to 1) of figures of at most `bound`; None if there are no figures."""
    return sum(value <= bound for value in seconds) / len(seconds) if seconds else None


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the smallest value that `percent` of the values do not exceed; 0.0 if there are no values."""
    ranked = sorted(values)
    return ranked[max(0, math.ceil(len(ranked) * percent / 100) - 1)] if ranked else 0.0


def drill_as_json(lines: Iterable[DrillRow]) -> list[Mapping[str, object]]:
    """Return the table for JSON, with seconds, and shares from 0 to 1."""
    return [{**vars(line), "met": line.met} for line in lines]


def _slower(idle: float, slack: float) -> float:
    return max(2 * idle, idle + slack)


def _most(values: Sequence[float]) -> float | None:
    return max(values, default=None)


def _text(value: float | None, unit: str) -> str:
    if value is None:
        return "-"
    if unit == "%":
        return f"{value:.1%}".replace("%", " %")
    return f"{value:.2f} s" if unit == "s" else f"{value:.0f}"
