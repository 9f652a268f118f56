"""The decisions of the recorder: from observations to actions. Pure, with the time as a parameter."""

from __future__ import annotations

from typing import NamedTuple

from vllm_safe.common.sizes import format_size, format_span
from vllm_safe.contract.recorded_run import End, Event
from vllm_safe.contract.state_file import PHASES, ReportedMemory, State
from vllm_safe.record.sampler import QuickSample

EVERY = 1.0  # seconds between two samples while any figure moves
STEADY = 10.0  # seconds between two samples while no figure moves
SETTLE = 30.0  # seconds without movement until the model counts as steady
LINGER = 1.5  # seconds after the end until the lines of the kernel and of earlyoom are in the journal
GONE = 5.0  # seconds without an invocation or a report of the end, after which the run is over

_LOADED = frozenset(PHASES[PHASES.index("loading") + 1 : PHASES.index("stopping")])  # phases after the weights have been loaded
_MOVED_BYTES = 32 << 20  # of memory or swap
_MOVED_STALL = 0.01  # share of the time


class UnitObservation(NamedTuple):
    """An observation of the unit. If state and end are old, they belong to another start than `invocation`."""

    invocation: str = ""  # the unit's invocation id in systemd, "" while it is inactive
    state: State | None = None
    end: End | None = None  # the end of the start that is being recorded


class BeginRun(NamedTuple):
    """Begin to record a start of the unit, or continue its run."""

    invocation: str


class AddEvent(NamedTuple):
    """Record an event."""

    event: Event


class FinishRun(NamedTuple):
    """Finish the run. end: the report of its end, None if there is none."""

    end: End | None


Action = BeginRun | AddEvent | FinishRun


class RunTracker:
    """The state of the recorder. ended: the first 8 digits of the invocations that have been recorded to their end."""

    def __init__(self, ended: frozenset[str] = frozenset()) -> None:
        self.invocation = ""  # the invocation that is being recorded, "" for none
        self._ended = set(ended)
        self._phase = self._cause = ""
        self._memory: ReportedMemory | None = None
        self._load: State | None = None  # the last state with progress of the load
        self._end_at: float | None = None  # the time at which its end was first observed
        self._gone_at: float | None = None  # the time at which the unit was first observed without the invocation

    def see(self, now: float, wall: float, seen: UnitObservation) -> list[Action]:
        """Take an observation and return the actions. now: seconds of a monotonic clock. wall: Unix time."""
        if not self.invocation:
            if not seen.invocation or seen.invocation[:8] in self._ended:
                return []
            self.invocation, self._phase, self._cause, self._memory, self._load = seen.invocation, "", "", None, None
            return [BeginRun(seen.invocation), *self._notes(wall, seen)]
        return [*self._notes(wall, seen), *self._over(now, seen)]

    def knows(self, invocation: str) -> bool:
        """Return whether this start was recorded to its end."""
        return invocation[:8] in self._ended

    def leave(self, seen: UnitObservation) -> list[Action]:
        """Return the actions for a stop of the recorder. The run continues if the recorder is only restarted while the unit runs."""
        return [self._finish(seen.end)] if self.invocation and (seen.end or seen.invocation != self.invocation) else []

    def _notes(self, wall: float, seen: UnitObservation) -> list[Action]:
        state = seen.state
        if state is None or state.run != self.invocation:
            return []
        notes: list[Action] = []
        if state.phase == "loading" and state.progress:
            self._load = state
        if state.phase != self._phase:
            if self._load and state.phase in _LOADED:
                notes.append(AddEvent(_describe_load(wall, self._load, state.since)))
            if state.phase != "loading":
                self._load = None
            notes.append(AddEvent(Event(wall, "stopping" if state.phase == "stopping" else "phase", state.phase, {"from": self._phase})))
            self._phase = state.phase
        if state.memory and state.memory.tokens is not None and state.memory != self._memory:
            self._memory = state.memory
            notes.append(AddEvent(Event(wall, "memory", _describe_memory(state.memory), state.memory._asdict())))
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


def _describe_load(wall: float, load: State, until: float) -> Event:
    """Return the event of a finished load. The size is that of the whole checkpoint, since the last count may be some seconds old."""
    size, counted = (load.progress.total, load.progress.counted) if load.progress else (None, False)
    seconds = max(until - load.since, 0.0)
    pace = f", {format_size(int(size / seconds))}/s" if size and seconds >= 1 else ""
    who = "vllm-safe" if counted else "vLLM itself"
    text = f"{format_size(size or 0)} of weights in {format_span(seconds)}{pace}, read by {who}"
    return Event(wall, "load", text, {"bytes": size, "seconds": round(seconds, 1), "counted": counted})


def _describe_memory(memory: ReportedMemory) -> str:
    weights = " and ".join(map(format_size, sorted(set(memory.weights))))
    parts = [f"{weights} of weights on each GPU"] if weights else []
    if memory.cache is not None:
        parts.append(f"{format_size(memory.cache)} left for the KV cache on one GPU")
    return ", ".join([*parts, f"a KV cache of {memory.tokens:,} tokens"])


class SamplingPace:
    """The sampling interval: a second while the model loads or any figure moves, ten seconds when it is steady."""

    def __init__(self) -> None:
        self._sampled_at = self._moved_at = float("-inf")
        self._last: tuple[str, QuickSample] | None = None

    def due(self, now: float, phase: str, glance: QuickSample) -> bool:
        """Return whether a sample is due. glance: a quick sample, taken each second."""
        if self._last is None or self._moves(now, phase, glance):
            self._moved_at = now
        steady = now >= self._moved_at + SETTLE
        # A tenth of a second too early counts as due, since the loop wakes up once a second.
        if now < self._sampled_at + (STEADY if steady and self._moved_at != now else EVERY) - 0.1:
            return False
        self._sampled_at, self._last = now, (phase, glance)
        return True

    def _moves(self, now: float, phase: str, glance: QuickSample) -> bool:
        old_phase, old = self._last or (phase, glance)
        grown = max(abs((new or 0) - (before or 0)) for new, before in ((glance.memory, old.memory), (glance.swap, old.swap)))
        stalled = (glance.stalled - old.stalled) / 1e6 / max(now - self._sampled_at, EVERY)
        return phase != "ready" or phase != old_phase or grown >= _MOVED_BYTES or stalled >= _MOVED_STALL
