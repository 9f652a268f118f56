"""What the guard does when: readings in, acts out, with the time handed in. Nothing here touches the machine.

The measure is what the OS suffers: seconds in which all that wanted to run in system.slice, user.slice or init.scope stood still for memory
or for a disk (`full` of PSI). A step is due when they made up its share of its last seconds. It is taken on the model that moves most pages
meanwhile, if that is a fair part of all: a model that swaps as hard as it can while the OS is well is nobody's concern here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from vllm_safe.guard.plan import Plan, Step
from vllm_safe.guard.window import Window

TICK = 0.25  # seconds between two readings while there is pressure
WAKEFUL = 10.0  # seconds that such readings go on after it
CALM = 30.0  # seconds without pressure after which a model gets its share back
DYING = 10.0  # seconds after a kill in which a model is left alone: frozen it could not die, and its unit has something to write down
REST = 2.0  # after a freeze the model runs for at least so many times as long: it stands still a third of the time at most
THAW_EARLY = 1.0  # seconds of a freeze after which it ends as soon as the OS no longer waits
MOST_CREDIT = 2.0  # seconds of stall that one reading counts: what a suspend or a stopped clock adds is no pressure
CAUSE_SPAN = 5.0  # seconds over which the movement of pages is compared
FEWEST_PAGES = 16.0  # a second; who moves less keeps nobody waiting
FAIR_PART = 0.2  # of all pages that models and OS move
LARGE = 0.5  # of RAM: where nobody moves anything, what holds so much is what the OS has not
FEWEST_READS = 10  # a second, that a squeezed model may do on each disk


class Usage(NamedTuple):
    """What one model has done so far. Counts grow for ever; watch.py has where they come from."""

    moved: int  # pages swapped in, read, written, or gained
    held: int = 0  # bytes of RAM now
    reads: Mapping[str, int] = {}  # by disk (MAJOR:MINOR): read operations


class Reading(NamedTuple):
    """One look at the machine. `stalls`: seconds stalled so far, by "system.slice memory full" and the like."""

    now: float  # seconds of a monotonic clock
    stalls: Mapping[str, float]
    models: Mapping[str, Usage] = {}  # by unit
    system: int = 0  # pages moved by the OS's slices
    ram: int = 0  # bytes, of the machine
    available: int = 0  # bytes
    swap_free: int = 0  # bytes


class Act(NamedTuple):
    """kind: squeeze, freeze, thaw, kill or restore; readings: the figures that led to it; reads: operations per second, by disk."""

    kind: str
    unit: str
    text: str
    readings: Mapping[str, float] = {}
    reads: Mapping[str, int] = {}


class Ward:
    """What was done to one model."""

    squeezed = False
    frozen_at: float | None = None
    rests_until = 0.0  # not frozen again before
    dies_until = 0.0


class Guard:
    """The state of the guard."""

    def __init__(self, plan: Plan) -> None:
        self._now = self._pressed_at = float("-inf")
        self._raw: Mapping[str, float] = {}  # stalls as last read
        self._stalls: dict[str, float] = {}  # as they count: see MOST_CREDIT
        self._wards: dict[str, Ward] = {}
        self.obey(plan)

    def obey(self, plan: Plan) -> None:
        """Other settings from now on."""
        self._plan = plan
        self._windows = {step: Window(step.after) for step in (plan.squeeze, plan.freeze, plan.kill)}
        self._second, self._moves = Window(1.0), Window(CAUSE_SPAN)

    @property
    def held_back(self) -> dict[str, str]:
        """The models that have less than their share now, and how."""
        now = {unit: "frozen" if ward.frozen_at is not None else "squeezed" if ward.squeezed else "" for unit, ward in self._wards.items()}
        return {unit: how for unit, how in now.items() if how}

    @property
    def wakeful(self) -> bool:
        """Whether the next reading is due within TICK."""
        return bool(self.held_back) or self._now - self._pressed_at < WAKEFUL

    def woken(self, now: float) -> None:
        """The kernel says that there is pressure."""
        self._now = self._pressed_at = now

    def suspended(self) -> None:
        """The machine slept: what stood still meanwhile was no pressure."""
        self._raw = {}
        for window in (*self._windows.values(), self._second, self._moves):
            window.clear()

    def tick(self, reading: Reading) -> list[Act]:
        """What to do now."""
        self._take_in(reading)
        return [*self._thaw(reading), *(self._step(reading) if self._plan.enabled else ()), *self._restore(reading)]

    def release(self) -> list[Act]:
        """Everything back: the guard ends."""
        acts = [Act("thaw", unit, "thawed: the guard ends") for unit, ward in self._wards.items() if ward.frozen_at is not None]
        acts += [Act("restore", unit, "has its share again: the guard ends") for unit, ward in self._wards.items() if ward.squeezed]
        self._wards.clear()
        return acts

    def _take_in(self, reading: Reading) -> None:
        passed, self._now = max(0.0, reading.now - self._now), reading.now
        for key, total in reading.stalls.items():
            grown = min(max(0.0, total - self._raw.get(key, total)), passed, MOST_CREDIT)
            self._stalls[key] = self._stalls.get(key, 0.0) + grown
        self._raw = reading.stalls
        for window in (*self._windows.values(), self._second):
            window.add(reading.now, self._stalls)
        self._moves.add(reading.now, _moves(reading))
        for unit in self._wards.keys() - reading.models.keys():
            del self._wards[unit]
        if self._worst(self._second)[1] >= self._plan.threshold / 2:
            self._pressed_at = reading.now

    def _worst(self, window: Window, only: str = "") -> tuple[str, float]:
        """What the OS waited for most, and for which share of the window's span."""
        shares = [(key, min(grown / window.span, 1.0)) for key, grown in window.grown(self._stalls).items() if only in key]
        return max(shares, key=lambda pair: pair[1], default=("", 0.0))

    def _due(self, step: Step, only: str = "") -> str:
        """What the OS waits for, in words, if the step is due."""
        what, share = self._worst(self._windows[step], only)
        return f"{what} {share:.0%} of {step.after:g} s" if share >= step.pressure else ""

    def _thaw(self, reading: Reading) -> list[Act]:
        acts = []
        for unit, ward in self._wards.items():
            if ward.frozen_at is None:
                continue
            frozen = reading.now - ward.frozen_at
            eased = frozen >= THAW_EARLY and self._worst(self._second)[1] < self._plan.threshold
            if eased or frozen >= self._plan.freeze_time or not self._plan.enabled:
                ward.frozen_at, ward.rests_until = None, reading.now + REST * frozen
                self._windows[self._plan.freeze].clear()  # what it did not cause
                acts.append(Act("thaw", unit, f"thawed after {frozen:.1f} s", self._figures(reading)))
        return acts

    def _step(self, reading: Reading) -> list[Act]:
        """The hardest step that is due, on who causes it."""
        plan, cause = self._plan, self._cause(reading)
        if (why := self._due(plan.kill, "memory")) and (unit := cause or _largest(reading)) and not self._dies(unit, reading):
            return self._kill(unit, why, reading)
        if cause is None or self._dies(cause, reading):
            return []
        ward = self._wards.setdefault(cause, Ward())
        if not ward.squeezed:
            if not (why := self._due(plan.squeeze)):
                return []
            ward.squeezed = True
            text = f"squeezed to the least share of CPUs and disks: {why}"
            return [Act("squeeze", cause, text, self._figures(reading, cause), self._fewer_reads(cause, reading))]
        if ward.frozen_at is None and reading.now >= ward.rests_until and (why := self._due(plan.freeze)):
            ward.frozen_at = reading.now
            return [Act("freeze", cause, f"frozen for at most {plan.freeze_time:g} s: {why}", self._figures(reading, cause))]
        return []

    def _dies(self, unit: str, reading: Reading) -> bool:
        return unit in self._wards and reading.now < self._wards[unit].dies_until

    def _kill(self, unit: str, why: str, reading: Reading) -> list[Act]:
        ward = self._wards.setdefault(unit, Ward())
        self._windows[self._plan.kill].clear()  # the next is not killed for what this one did
        figures = self._figures(reading, unit)
        acts = [Act("kill", unit, f"killed, to keep the machine usable: {why}", figures)]
        ward.dies_until = reading.now + DYING
        if ward.frozen_at is not None:
            ward.frozen_at = None
            acts.append(Act("thaw", unit, "thawed, to die", figures))
        return acts

    def _restore(self, reading: Reading) -> list[Act]:
        if self._plan.enabled and reading.now - self._pressed_at < CALM:
            return []
        acts = []
        for unit, ward in self._wards.items():
            if ward.squeezed and ward.frozen_at is None:
                ward.squeezed = False
                acts.append(Act("restore", unit, "has its share again", self._figures(reading)))
        return acts

    def _cause(self, reading: Reading) -> str | None:
        """The model that moves most pages, if it does enough to matter."""
        moved = self._moves.grown(_moves(reading))
        most = max(reading.models, key=lambda unit: moved.get(unit, 0.0), default="")
        total = sum(moved.get(unit, 0.0) for unit in ("", *reading.models))
        pages = moved.get(most, 0.0) if most else 0.0
        enough = pages >= max(FEWEST_PAGES * self._moves.length(reading.now), FAIR_PART * total)
        return most if pages > 0 and enough else None

    def _fewer_reads(self, unit: str, reading: Reading) -> dict[str, int]:
        """A quarter of the reads that it does now: weights mean nothing to Debian's own I/O scheduler, mq-deadline."""
        seconds = max(self._moves.length(reading.now), TICK)
        done = self._moves.grown(_moves(reading))
        rates = {disk: done.get(f"{unit} {disk}", 0.0) / seconds for disk in reading.models[unit].reads}
        return {disk: max(FEWEST_READS, round(rate / 4)) for disk, rate in rates.items() if rate > FEWEST_READS}

    def _figures(self, reading: Reading, unit: str = "") -> dict[str, float]:
        """The readings, for people: shares of the last second, pages a second, MiB."""
        figures = {key: round(min(grown, 1.0), 2) for key, grown in self._second.grown(self._stalls).items()}
        if unit:
            moved = self._moves.grown(_moves(reading)).get(unit, 0.0)
            figures["model pages/s"] = round(moved / max(self._moves.length(reading.now), TICK))
        return figures | {"RAM available MiB": reading.available >> 20, "swap free MiB": reading.swap_free >> 20}


def _moves(reading: Reading) -> dict[str, float]:
    """Pages moved by unit ("" is the OS), and reads by unit and disk."""
    moves: dict[str, float] = {"": reading.system}
    for unit, usage in reading.models.items():
        moves[unit] = usage.moved
        moves.update((f"{unit} {disk}", count) for disk, count in usage.reads.items())
    return moves


def _largest(reading: Reading) -> str | None:
    unit = max(reading.models, key=lambda name: reading.models[name].held, default="")
    return unit if unit and reading.models[unit].held >= LARGE * reading.ram > 0 else None
