"""The decisions of the guard: from readings to actions. Pure, with the time as a parameter.

The measure is the pressure on the operating system: seconds in which all tasks in system.slice, user.slice or init.scope were stalled on
memory or I/O (`full` of PSI). A step is due when the stall makes up its share of its last seconds. It is taken on the model that causes the
pressure, see blame.py. A model that swaps heavily while the operating system is fine is left alone.
"""

from __future__ import annotations

from collections.abc import Mapping

from vllm_safe.common.named_tuples import NamedTuple
from vllm_safe.contract.guard_file import GuardPlan, Threshold
from vllm_safe.guard.blame import Blame, largest_model
from vllm_safe.guard.readings import Reading
from vllm_safe.guard.window import Window

TICK = 0.25  # seconds between two readings while there is pressure
WAKEFUL = 10.0  # seconds for which such readings continue after the pressure
CALM = 20.0  # seconds with less than half of the squeeze pressure after which a model's weights are restored
DYING = 10.0  # seconds after a kill in which a model is left alone: a frozen one could not exit, and its unit still records the end
REST = 2.0  # after a freeze the model runs for at least this many times as long: it is frozen a third of the time at most
THAW_EARLY = 1.0  # seconds of a freeze after which it ends as soon as the operating system is no longer stalled
MOST_CREDIT = 2.0  # seconds of stall that one reading can count: the rest is a suspend or a stopped clock, and no pressure

_RESTORED = "restored to its CPU and I/O weights"
_TASKS = {"system.slice": "system services", "user.slice": "login sessions", "init.scope": "systemd"}


class GuardAction(NamedTuple):
    """An action of the guard. kind: squeeze, freeze, thaw, kill or restore. readings: the figures that led to it."""

    kind: str
    unit: str
    text: str
    readings: Mapping[str, float] = {}


class ModelState:
    """The actions in force on one model. Times are of the monotonic clock, in seconds."""

    squeezed = False
    frozen_at: float | None = None
    rests_until = 0.0  # it is not frozen again before this time
    dies_until = 0.0


class GuardState:
    """The state of the guard."""

    def __init__(self, plan: GuardPlan) -> None:
        self._now = self._pressed_at = self._restless_at = float("-inf")
        self._raw: Mapping[str, float] = {}  # the last stalls read
        self._stalls: dict[str, float] = {}  # stalls as far as they count: see MOST_CREDIT
        # The clock and the stalls for the kill, without the time in which a model is frozen. A freeze that helps only while it lasts would
        # otherwise keep the share below the kill pressure for ever, since it lasts a third of the time.
        self._unfrozen, self._unfrozen_stalls = 0.0, dict[str, float]()
        self._models: dict[str, ModelState] = {}
        self._second, self._blame = Window(1.0), Blame()
        self.obey(plan)

    def obey(self, plan: GuardPlan) -> None:
        """Use other settings from now on."""
        self._plan = plan
        self._squeezing, self._freezing, self._killing = (Window(step.after) for step in (plan.squeeze, plan.freeze, plan.kill))

    @property
    def held_back(self) -> dict[str, str]:
        """The units that are squeezed or frozen now, with one of these words."""
        now = {
            unit: "frozen" if model.frozen_at is not None else "squeezed" if model.squeezed else "" for unit, model in self._models.items()
        }
        return {unit: how for unit, how in now.items() if how}

    @property
    def wakeful(self) -> bool:
        """Whether the next reading is due within TICK."""
        return bool(self.held_back) or self._now - self._pressed_at < WAKEFUL

    def woken(self, now: float) -> None:
        """Handle a PSI trigger of the kernel. It is not a reading: the next reading counts the stall since the last one."""
        self._pressed_at = now

    def suspended(self) -> None:
        """Handle a suspend of the machine: the stall meanwhile was no pressure."""
        self._raw = {}
        for window in (self._squeezing, self._freezing, self._killing, self._second, self._blame):
            window.clear()

    def tick(self, reading: Reading) -> list[GuardAction]:
        """Take a reading and return the actions that are due."""
        self._take_in(reading)
        return [*self._thaw(reading), *(self._step(reading) if self._plan.enabled else ()), *self._restore(reading)]

    def release(self) -> list[GuardAction]:
        """Return the actions that reverse everything, since the guard is stopping."""
        acts = [
            GuardAction("thaw", unit, "thawed: the guard is stopping")
            for unit, model in self._models.items()
            if model.frozen_at is not None
        ]
        acts += [
            GuardAction("restore", unit, f"{_RESTORED}: the guard is stopping") for unit, model in self._models.items() if model.squeezed
        ]
        self._models.clear()
        return acts

    def _take_in(self, reading: Reading) -> None:
        passed, self._now = max(0.0, reading.now - self._now), reading.now
        counts = not any(model.frozen_at is not None for model in self._models.values())
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
        for unit in self._models.keys() - reading.models.keys():
            del self._models[unit]
        if self._worst(self._second)[1] >= self._plan.threshold / 2:
            self._pressed_at = reading.now
        if (
            self._worst(self._squeezing)[1] >= self._plan.squeeze.pressure / 2
        ):  # not over the last second: a single login is not pressure that lasts
            self._restless_at = reading.now

    def _worst(self, window: Window, only: str = "") -> tuple[str, float]:
        """Return the key of the largest stall, and its share of the window's span."""
        totals = self._unfrozen_stalls if window is self._killing else self._stalls
        shares = [(key, min(grown / window.span, 1.0)) for key, grown in window.grown(totals).items() if only in key]
        return max(shares, key=lambda pair: pair[1], default=("", 0.0))

    def _due(self, step: Threshold, window: Window, setting: str, only: str = "") -> str:
        """Describe the stall if the step is due, else return ""."""
        key, share = self._worst(window, only)
        return f"{_describe_stall(key, share, step.after)} ({setting})" if share >= step.pressure else ""

    def _thaw(self, reading: Reading) -> list[GuardAction]:
        acts = []
        for unit, model in self._models.items():
            if model.frozen_at is None:
                continue
            frozen = reading.now - model.frozen_at
            eased = frozen >= THAW_EARLY and self._worst(self._second)[1] < self._plan.threshold
            if eased or frozen >= self._plan.freeze_time or not self._plan.enabled:
                model.frozen_at, model.rests_until = None, reading.now + REST * frozen
                self._freezing.clear()  # the stall in this window was not caused by the frozen model
                self._blame.thawed(reading.now)
                acts.append(GuardAction("thaw", unit, f"thawed after {frozen:.1f} s", self._figures(reading)))
        return acts

    def _step(self, reading: Reading) -> list[GuardAction]:
        """Return the hardest step that is due, on the model that causes the pressure."""
        plan, cause = self._plan, self._blame.cause(reading)
        why = self._due(plan.kill, self._killing, "guard.kill_pressure", "memory") if reading.certain else ""
        if why and (unit := cause or largest_model(reading)) and not self._dies(unit, reading):
            return self._kill(unit, why, reading)
        if cause is None or self._dies(cause, reading):
            return []
        model = self._models.setdefault(cause, ModelState())
        if not model.squeezed:
            if not (why := self._due(plan.squeeze, self._squeezing, "guard.squeeze_pressure")):
                return []
            model.squeezed = True
            text = f"squeezed to the lowest CPU and I/O weights: {why}"
            return [GuardAction("squeeze", cause, text, self._figures(reading, cause))]
        freezable = model.frozen_at is None and reading.now >= model.rests_until
        if freezable and (why := self._due(plan.freeze, self._freezing, "guard.freeze_pressure")):
            model.frozen_at = reading.now
            self._blame.froze(cause)
            return [GuardAction("freeze", cause, f"frozen for at most {plan.freeze_time:g} s: {why}", self._figures(reading, cause))]
        return []

    def _dies(self, unit: str, reading: Reading) -> bool:
        return unit in self._models and reading.now < self._models[unit].dies_until

    def _kill(self, unit: str, why: str, reading: Reading) -> list[GuardAction]:
        model = self._models.setdefault(unit, ModelState())
        self._killing.clear()  # another model must not be killed for the pressure that this one caused
        figures = self._figures(reading, unit)
        acts = [GuardAction("kill", unit, f"killed by the vllm-safe guard: {why}", figures)]
        model.dies_until = reading.now + DYING
        self._blame.forgive()
        if model.frozen_at is not None:
            model.frozen_at = None
            acts.append(GuardAction("thaw", unit, "thawed, so that it can exit", figures))
        return acts

    def _restore(self, reading: Reading) -> list[GuardAction]:
        if self._plan.enabled and reading.now - self._restless_at < CALM:
            return []
        acts = []
        for unit, model in self._models.items():
            if model.squeezed and model.frozen_at is None:
                model.squeezed = False
                acts.append(GuardAction("restore", unit, _RESTORED, self._figures(reading)))
        return acts

    def _figures(self, reading: Reading, unit: str = "") -> dict[str, float]:
        """Return the readings for people: shares of the last second, pages per second, MiB."""
        figures = {key: round(min(grown, 1.0), 2) for key, grown in self._second.grown(self._stalls).items()}
        if unit:
            figures["model pages/s"] = round(self._blame.rate(unit, reading))
        return figures | {"RAM available MiB": reading.available >> 20, "swap free MiB": reading.swap_free >> 20}


def _describe_stall(key: str, share: float, seconds: float) -> str:
    """Describe a stall for people. key: as in Reading.stalls; "faults" in it marks an estimate."""
    tasks, resource, kind = key.split()
    how = "an estimated " if kind == "faults" else ""
    return f"{_TASKS[tasks]} spent {how}{share:.0%} of the last {seconds:g} s stalled on {'I/O' if resource == 'io' else resource}"
