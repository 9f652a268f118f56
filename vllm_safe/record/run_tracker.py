"""What the recorder does when something happens: pure, with the time handed in. What it sees goes in, what is to be done comes out."""

from __future__ import annotations

from typing import NamedTuple

from vllm_safe.contract.recorded_run import End, Event
from vllm_safe.contract.state_file import State
from vllm_safe.record.sampler import QuickSample

EVERY = 1.0  # seconds between two samples while anything moves
STEADY = 10.0  # and when nothing does
SETTLE = 30.0  # without a movement until it is steady
LINGER = 1.5  # seconds after the end until the kernel's and earlyoom's lines are in the journal
GONE = 5.0  # without an invocation, and no word of the end: it is over all the same

_MOVED_BYTES = 32 << 20  # of memory or swap
_MOVED_STALL = 0.01  # share of the time


class UnitObservation(NamedTuple):
    """What is to be seen of the unit. state and end belong to another start than `invocation` if they are old."""

    invocation: str = ""  # of the unit as systemd has it, "" while it is inactive
    state: State | None = None
    end: End | None = None  # of the start that is recorded


class BeginRun(NamedTuple):
    """A start of the unit is to be recorded, or gone on with."""

    invocation: str


class AddEvent(NamedTuple):
    """Something that happened."""

    event: Event


class FinishRun(NamedTuple):
    """The run is over. end: what was said of it, None if nothing was."""

    end: End | None


Action = BeginRun | AddEvent | FinishRun


class RunTracker:
    """Which run is recorded. `ended`: first 8 digits of starts that were recorded to their end before."""

    def __init__(self, ended: frozenset[str] = frozenset()) -> None:
        self.invocation = ""  # that is recorded, "": none
        self._ended = set(ended)
        self._phase = self._cause = ""
        self._end_at: float | None = None  # when its end was first seen
        self._gone_at: float | None = None  # when the unit was first seen without it

    def see(self, now: float, wall: float, seen: UnitObservation) -> list[Action]:
        """Time has passed."""
        if not self.invocation:
            if not seen.invocation or seen.invocation[:8] in self._ended:
                return []
            self.invocation, self._phase, self._cause = seen.invocation, "", ""
            return [BeginRun(seen.invocation), *self._notes(wall, seen)]
        return [*self._notes(wall, seen), *self._over(now, seen)]

    def knows(self, invocation: str) -> bool:
        """Whether this start was recorded to its end."""
        return invocation[:8] in self._ended

    def leave(self, seen: UnitObservation) -> list[Action]:
        """We are asked to end. Whoever only restarts us while the unit runs wants the run to go on."""
        return [self._finish(seen.end)] if self.invocation and (seen.end or seen.invocation != self.invocation) else []

    def _notes(self, wall: float, seen: UnitObservation) -> list[Action]:
        state = seen.state
        if state is None or state.run != self.invocation:
            return []
        notes: list[Action] = []
        if state.phase != self._phase:
            notes.append(AddEvent(Event(wall, "stopping" if state.phase == "stopping" else "phase", state.phase, {"from": self._phase})))
            self._phase = state.phase
        if state.cause != self._cause:
            if state.cause in {"stall", "hang"}:
                notes.append(AddEvent(Event(wall, state.cause, state.reason)))
            self._cause = state.cause
        return notes

    def _over(self, now: float, seen: UnitObservation) -> list[Action]:
        if seen.invocation and seen.invocation != self.invocation:  # the next start is already under way
            return [self._finish(seen.end)]
        if seen.end:
            self._end_at = now if self._end_at is None else self._end_at
            return [self._finish(seen.end)] if now >= self._end_at + LINGER else []
        if seen.invocation:
            self._gone_at = None
            return []
        self._gone_at = now if self._gone_at is None else self._gone_at
        return [self._finish(None)] if now >= self._gone_at + GONE else []

    def _finish(self, end: End | None) -> FinishRun:
        self._ended.add(self.invocation[:8])
        self.invocation, self._end_at, self._gone_at = "", None, None
        return FinishRun(end)


class SamplingPace:
    """When to sample: each second while it loads or anything moves, each ten when it is steady."""

    def __init__(self) -> None:
        self._sampled_at = self._moved_at = float("-inf")
        self._last: tuple[str, QuickSample] | None = None

    def due(self, now: float, phase: str, glance: QuickSample) -> bool:
        """Whether a sample is due, at a glance each second."""
        if self._last is None or self._moves(now, phase, glance):
            self._moved_at = now
        steady = now >= self._moved_at + SETTLE
        # A tenth of a second early is on time: the loop wakes once a second.
        if now < self._sampled_at + (STEADY if steady and self._moved_at != now else EVERY) - 0.1:
            return False
        self._sampled_at, self._last = now, (phase, glance)
        return True

    def _moves(self, now: float, phase: str, glance: QuickSample) -> bool:
        old_phase, old = self._last or (phase, glance)
        grown = max(abs((new or 0) - (before or 0)) for new, before in ((glance.memory, old.memory), (glance.swap, old.swap)))
        stalled = (glance.stalled - old.stalled) / 1e6 / max(now - self._sampled_at, EVERY)
        return phase != "ready" or phase != old_phase or grown >= _MOVED_BYTES or stalled >= _MOVED_STALL
