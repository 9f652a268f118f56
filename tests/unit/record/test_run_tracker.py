"""The beginning and end of a run, its events, and its sampling interval."""

from __future__ import annotations

from itertools import pairwise

import pytest

from vllm_safe.contract.recorded_run import End
from vllm_safe.contract.state_file import LoadProgress, ReportedMemory, State
from vllm_safe.record.run_tracker import (
    GONE,
    LINGER,
    SETTLE,
    STEADY,
    AddEvent,
    BeginRun,
    FinishRun,
    RunTracker,
    SamplingPace,
    UnitObservation,
)
from vllm_safe.record.sampler import QuickSample

ONE, TWO = "a" * 32, "b" * 32
END = End(1.0, "exited")
GIB = 1 << 30


def state(phase: str, run: str = ONE, cause: str = "", reason: str = "", memory: ReportedMemory | None = None) -> State:
    return State("x", run, 1, 0.0, 0.0, phase, 0.0, cause=cause, reason=reason, memory=memory)


def test_a_run_begins_with_an_invocation_and_ends_a_moment_after_its_end() -> None:
    follow = RunTracker()
    assert follow.see(0, 100, UnitObservation()) == []
    assert follow.see(1, 101, UnitObservation(ONE)) == [BeginRun(ONE)]
    assert follow.see(2, 102, UnitObservation(ONE)) == []
    assert follow.see(3, 103, UnitObservation(ONE, end=END)) == []
    assert follow.see(3 + LINGER, 104, UnitObservation(ONE, end=END)) == [FinishRun(END)]
    assert follow.see(9, 105, UnitObservation(ONE, end=END)) == [], "systemd keeps it while it waits to restart"
    assert follow.see(40, 106, UnitObservation(TWO)) == [BeginRun(TWO)]


def test_a_run_that_was_recorded_to_its_end_is_not_begun_again() -> None:
    assert RunTracker(frozenset({ONE[:8]})).see(0, 0, UnitObservation(ONE)) == []
    assert RunTracker(frozenset({TWO[:8]})).see(0, 0, UnitObservation(ONE)) == [BeginRun(ONE)]


def test_without_a_word_it_is_over_when_the_unit_has_gone_for_a_while() -> None:
    follow = RunTracker()
    follow.see(0, 0, UnitObservation(ONE))
    assert follow.see(1, 1, UnitObservation()) == []
    assert follow.see(2, 2, UnitObservation(ONE)) == [], "back again"
    assert follow.see(3, 3, UnitObservation()) == []
    assert follow.see(3 + GONE - 0.1, 4, UnitObservation()) == []
    assert follow.see(3 + GONE, 5, UnitObservation()) == [FinishRun(None)]


def test_the_next_start_ends_the_one_before() -> None:
    follow = RunTracker()
    follow.see(0, 0, UnitObservation(ONE))
    assert follow.see(1, 1, UnitObservation(TWO)) == [FinishRun(None)]
    assert follow.see(2, 2, UnitObservation(TWO)) == [BeginRun(TWO)]


def test_phases_are_noted_once_each() -> None:
    follow = RunTracker()
    begun = follow.see(0, 100, UnitObservation(ONE, state("starting")))
    assert [type(action) for action in begun] == [BeginRun, AddEvent]
    notes = [action for second in range(3) for action in follow.see(second, 101, UnitObservation(ONE, state("loading")))]
    assert [note.event.text for note in notes if isinstance(note, AddEvent)] == ["loading"]
    (stopping,) = follow.see(5, 105, UnitObservation(ONE, state("stopping")))
    assert isinstance(stopping, AddEvent)
    assert stopping.event.kind == "stopping"
    assert stopping.event.time == 105


def test_what_vllm_says_of_its_memory_is_one_event_once_it_is_complete() -> None:
    follow = RunTracker()
    follow.see(0, 0, UnitObservation(ONE, state("loading")))
    part = ReportedMemory((7 * GIB, 7 * GIB), 3 * GIB)
    assert follow.see(1, 1, UnitObservation(ONE, state("loading", memory=part))) == []
    whole = part._replace(tokens=41_600)
    (note,) = follow.see(2, 2, UnitObservation(ONE, state("loading", memory=whole)))
    assert isinstance(note, AddEvent)
    assert (note.event.kind, note.event.data) == ("memory", whole._asdict())
    assert note.event.text == "7.0 GiB of weights on each GPU, 3.0 GiB left for the KV cache on one GPU, a KV cache of 41,600 tokens"
    assert follow.see(3, 3, UnitObservation(ONE, state("loading", memory=whole))) == []


def test_the_next_start_says_its_memory_anew() -> None:
    follow = RunTracker()
    whole = ReportedMemory((), None, 100)
    follow.see(0, 0, UnitObservation(ONE, state("loading", memory=whole)))
    follow.see(1, 1, UnitObservation(TWO))
    begun = follow.see(2, 2, UnitObservation(TWO, state("loading", run=TWO, memory=whole)))
    notes = [action.event for action in begun if isinstance(action, AddEvent)]
    assert [note.text for note in notes if note.kind == "memory"] == ["a KV cache of 100 tokens"]


@pytest.mark.parametrize(("counted", "who"), [(True, "vllm-safe"), (False, "vLLM itself")])
def test_a_load_that_is_over_is_one_event(*, counted: bool, who: str) -> None:
    follow = RunTracker()
    for now, read in enumerate((1, 70)):
        progress = LoadProgress(read * GIB, 72 * GIB, counted=counted)
        follow.see(now, now, UnitObservation(ONE, state("loading")._replace(since=100.0, progress=progress)))
    events = [
        note.event
        for note in follow.see(9, 9, UnitObservation(ONE, state("profiling")._replace(since=700.0)))
        if isinstance(note, AddEvent)
    ]
    assert [event.kind for event in events] == ["load", "phase"]
    assert events[0].text == f"72.0 GiB of weights in 10 min, 123 MiB/s, read by {who}"
    assert events[0].data == {"bytes": 72 * GIB, "seconds": 600.0, "counted": counted}


def test_a_load_that_failed_is_no_event() -> None:
    follow = RunTracker()
    follow.see(0, 0, UnitObservation(ONE, state("loading")._replace(progress=LoadProgress(1, 2))))
    (note,) = follow.see(1, 1, UnitObservation(ONE, state("ended")))
    assert isinstance(note, AddEvent)
    assert note.event.text == "ended"


def test_a_hang_and_a_stall_are_events_with_their_reason() -> None:
    follow = RunTracker()
    follow.see(0, 0, UnitObservation(ONE, state("loading")))
    (note,) = follow.see(1, 1, UnitObservation(ONE, state("loading", cause="stall", reason="nothing was read since 10:00")))
    assert isinstance(note, AddEvent)
    assert (note.event.kind, note.event.text) == ("stall", "nothing was read since 10:00")
    assert follow.see(2, 2, UnitObservation(ONE, state("loading", cause="stall", reason="..."))) == []


def test_what_another_start_said_is_not_noted() -> None:
    follow = RunTracker()
    assert follow.see(0, 0, UnitObservation(ONE, state("ready", run=TWO))) == [BeginRun(ONE)]


def test_who_restarts_the_recorder_alone_wants_the_run_to_go_on() -> None:
    follow = RunTracker()
    follow.see(0, 0, UnitObservation(ONE))
    assert follow.leave(UnitObservation(ONE)) == []
    assert follow.leave(UnitObservation()) == [FinishRun(None)]
    assert follow.leave(UnitObservation()) == []


def test_when_the_model_was_stopped_its_end_is_written_at_once() -> None:
    follow = RunTracker()
    follow.see(0, 0, UnitObservation(ONE))
    assert follow.leave(UnitObservation(ONE, end=END)) == [FinishRun(END)]


def seconds_of_samples(pace: SamplingPace, phase: str, glances: list[QuickSample], since: int = 0) -> list[int]:
    return [since + second for second, glance in enumerate(glances) if pace.due(since + second, phase, glance)]


def test_each_second_while_it_loads_even_if_nothing_moves() -> None:
    assert seconds_of_samples(SamplingPace(), "loading", [QuickSample(GIB, 0, 0)] * 100) == list(range(100))


def test_each_ten_when_it_is_steady() -> None:
    pace = SamplingPace()
    sampled = seconds_of_samples(pace, "ready", [QuickSample(GIB, 0, 0)] * 100)
    assert sampled[:30] == list(range(int(SETTLE)))
    assert {later - earlier for earlier, later in pairwise(sampled[31:])} == {int(STEADY)}


def test_a_movement_is_sampled_at_once() -> None:
    for moved in (QuickSample(2 * GIB, 0, 0), QuickSample(GIB, GIB, 0), QuickSample(GIB, 0, 2_000_000), QuickSample(None, None, 2_000_000)):
        pace = SamplingPace()
        sampled = seconds_of_samples(pace, "ready", [QuickSample(GIB, 0, 0)] * 75)
        assert 74 not in sampled
        assert pace.due(75, "ready", moved)
        assert pace.due(76, "ready", moved), "and closely for a while"


def test_a_model_that_serves_a_little_is_steady() -> None:
    glances = [QuickSample(GIB + second * 1000, 0, second * 100) for second in range(100)]
    assert len(seconds_of_samples(SamplingPace(), "ready", glances)) < 45


def test_the_end_of_a_steady_phase_is_sampled_at_once() -> None:
    pace = SamplingPace()
    seconds_of_samples(pace, "ready", [QuickSample(GIB, 0, 0)] * 75)
    assert pace.due(75, "stopping", QuickSample(GIB, 0, 0))
