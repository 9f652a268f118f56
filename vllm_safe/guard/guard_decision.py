"""What the guard does when: readings in, acts out, with the time handed in. Nothing here touches the machine.

The measure is what the OS suffers: seconds in which all that wanted to run in system.slice, user.slice or init.scope stood still for memory
or for a disk (`full` of PSI). A step is due when they made up its share of its last seconds. It is taken on the model that causes it, as
blame.py finds it: a model that swaps as hard as it can while the OS is well is nobody's concern here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from vllm_safe.contract.guard_file import GuardPlan, Threshold
from vllm_safe.guard.blame import Blame, largest_model
from vllm_safe.guard.readings import Reading
from vllm_safe.guard.window import Window

TICK = 0.25  # seconds between two readings while there is pressure
WAKEFUL = 10.0  # seconds that such readings go on after it
CALM = 20.0  # seconds in which the OS waits for less than half of what squeezes, after which a model gets its share back
DYING = 10.0  # seconds after a kill in which a model is left alone: frozen it could not die, and its unit has something to write down
REST = 2.0  # after a freeze the model runs for at least so many times as long: it stands still a third of the time at most
THAW_EARLY = 1.0  # seconds of a freeze after which it ends as soon as the OS no longer waits
MOST_CREDIT = 2.0  # seconds of stall that one reading counts: what a suspend or a stopped clock adds is no pressure


class GuardAction(NamedTuple):
    """kind: squeeze, freeze, thaw, kill or restore; readings: the figures that led to it."""

    kind: str
    unit: str
    text: str
    readings: Mapping[str, float] = {}


class ModelState:
    """What was done to one model."""

    squeezed = False
    frozen_at: float | None = None
    rests_until = 0.0  # not frozen again before
    dies_until = 0.0


class GuardState:
    """The state of the guard."""

    def __init__(self, plan: GuardPlan) -> None:
        self._now = self._pressed_at = self._restless_at = float("-inf")
        self._raw: Mapping[str, float] = {}  # stalls as last read
        self._stalls: dict[str, float] = {}  # as they count: see MOST_CREDIT
        # The same, and the clock, for the kill: time in which a model is frozen is left out. A freeze that helps only while it lasts would
        # else keep the share below what kills for ever, since it lasts a third of the time.
        self._unfrozen, self._unfrozen_stalls = 0.0, dict[str, float]()
        self._wards: dict[str, ModelState] = {}
        self._second, self._blame = Window(1.0), Blame()
        self.obey(plan)

    def obey(self, plan: GuardPlan) -> None:
        """Other settings from now on."""
        self._plan = plan
        self._squeezing, self._freezing, self._killing = (Window(step.after) for step in (plan.squeeze, plan.freeze, plan.kill))

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
        """The kernel says that there is pressure. No reading: what stood still since the last is for the next one to count."""
        self._pressed_at = now

    def suspended(self) -> None:
        """The machine slept: what stood still meanwhile was no pressure."""
        self._raw = {}
        for window in (self._squeezing, self._freezing, self._killing, self._second, self._blame):
            window.clear()

    def tick(self, reading: Reading) -> list[GuardAction]:
        """What to do now."""
        self._take_in(reading)
        return [*self._thaw(reading), *(self._step(reading) if self._plan.enabled else ()), *self._restore(reading)]

    def release(self) -> list[GuardAction]:
        """Everything back: the guard ends."""
        acts = [GuardAction("thaw", unit, "thawed: the guard ends") for unit, ward in self._wards.items() if ward.frozen_at is not None]
        acts += [GuardAction("restore", unit, "has its share again: the guard ends") for unit, ward in self._wards.items() if ward.squeezed]
        self._wards.clear()
        return acts

    def _take_in(self, reading: Reading) -> None:
        passed, self._now = max(0.0, reading.now - self._now), reading.now
        counts = not any(ward.frozen_at is not None for ward in self._wards.values())
        for key, total in reading.stalls.items():
            grown = min(max(0.0, total - self._raw.get(key, total)), passed, MOST_CREDIT)
            self._stalls[key] = self._stalls.get(key, 0.0) + grown
            self._unfrozen_stalls[key] = self._unfrozen_stalls.get(key, 0.0) + grown * counts
        if self._raw and counts:
            self._unfrozen += passed
        self._raw = reading.stalls
        for window in (self._squeezing, self._freezing, self._second):
            window.add(reading.now, self._stalls)
        self._killing.add(self._unfrozen, self._unfrozen_stalls)
        self._blame.add(reading)
        for unit in self._wards.keys() - reading.models.keys():
            del self._wards[unit]
        if self._worst(self._second)[1] >= self._plan.threshold / 2:
            self._pressed_at = reading.now
        if self._worst(self._squeezing)[1] >= self._plan.squeeze.pressure / 2:  # not the last second: a single login is no unrest
            self._restless_at = reading.now

    def _worst(self, window: Window, only: str = "") -> tuple[str, float]:
        """What the OS waited for most, and for which share of the window's span."""
        totals = self._unfrozen_stalls if window is self._killing else self._stalls
        shares = [(key, min(grown / window.span, 1.0)) for key, grown in window.grown(totals).items() if only in key]
        return max(shares, key=lambda pair: pair[1], default=("", 0.0))

    def _due(self, step: Threshold, window: Window, only: str = "") -> str:
        """What the OS waits for, in words, if the step is due."""
        what, share = self._worst(window, only)
        return f"{what} {share:.0%} of {step.after:g} s" if share >= step.pressure else ""

    def _thaw(self, reading: Reading) -> list[GuardAction]:
        acts = []
        for unit, ward in self._wards.items():
            if ward.frozen_at is None:
                continue
            frozen = reading.now - ward.frozen_at
            eased = frozen >= THAW_EARLY and self._worst(self._second)[1] < self._plan.threshold
            if eased or frozen >= self._plan.freeze_time or not self._plan.enabled:
                ward.frozen_at, ward.rests_until = None, reading.now + REST * frozen
                self._freezing.clear()  # what it did not cause
                self._blame.thawed(reading.now)
                acts.append(GuardAction("thaw", unit, f"thawed after {frozen:.1f} s", self._figures(reading)))
        return acts

    def _step(self, reading: Reading) -> list[GuardAction]:
        """The hardest step that is due, on who causes it."""
        plan, cause = self._plan, self._blame.cause(reading)
        why = self._due(plan.kill, self._killing, "memory") if reading.certain else ""
        if why and (unit := cause or largest_model(reading)) and not self._dies(unit, reading):
            return self._kill(unit, why, reading)
        if cause is None or self._dies(cause, reading):
            return []
        ward = self._wards.setdefault(cause, ModelState())
        if not ward.squeezed:
            if not (why := self._due(plan.squeeze, self._squeezing)):
                return []
            ward.squeezed = True
            text = f"squeezed to the least share of CPUs and disks: {why}"
            return [GuardAction("squeeze", cause, text, self._figures(reading, cause))]
        if ward.frozen_at is None and reading.now >= ward.rests_until and (why := self._due(plan.freeze, self._freezing)):
            ward.frozen_at = reading.now
            self._blame.froze(cause)
            return [GuardAction("freeze", cause, f"frozen for at most {plan.freeze_time:g} s: {why}", self._figures(reading, cause))]
        return []

    def _dies(self, unit: str, reading: Reading) -> bool:
        return unit in self._wards and reading.now < self._wards[unit].dies_until

    def _kill(self, unit: str, why: str, reading: Reading) -> list[GuardAction]:
        ward = self._wards.setdefault(unit, ModelState())
        self._killing.clear()  # the next is not killed for what this one did
        figures = self._figures(reading, unit)
        acts = [GuardAction("kill", unit, f"killed, to keep the machine usable: {why}", figures)]
        ward.dies_until = reading.now + DYING
        self._blame.forgive()
        if ward.frozen_at is not None:
            ward.frozen_at = None
            acts.append(GuardAction("thaw", unit, "thawed, to die", figures))
        return acts

    def _restore(self, reading: Reading) -> list[GuardAction]:
        if self._plan.enabled and reading.now - self._restless_at < CALM:
            return []
        acts = []
        for unit, ward in self._wards.items():
            if ward.squeezed and ward.frozen_at is None:
                ward.squeezed = False
                acts.append(GuardAction("restore", unit, "has its share again", self._figures(reading)))
        return acts

    def _figures(self, reading: Reading, unit: str = "") -> dict[str, float]:
        """The readings, for people: shares of the last second, pages a second, MiB."""
        figures = {key: round(min(grown, 1.0), 2) for key, grown in self._second.grown(self._stalls).items()}
        if unit:
            figures["model pages/s"] = round(self._blame.rate(unit, reading))
        return figures | {"RAM available MiB": reading.available >> 20, "swap free MiB": reading.swap_free >> 20}
