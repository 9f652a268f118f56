"""The limit on automatic restarts."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from vllm_safe.decide.restarts import RESTARTS, WINDOW, count_restart, limit_restarts
from vllm_safe.host.start_facts import Starts


def run_starts(counts_and_times: list[tuple[int, float]], served: Sequence[float] = ()) -> list[bool]:
    """Return whether each start is refused.

    counts_and_times: systemd's NRestarts and the time in seconds, for each start. served: the times at which the model was ready.
    """
    starts, refused = Starts(), []
    for counted, now in counts_and_times:
        last = max((moment for moment in served if moment < now), default=None)
        starts, finding = limit_restarts(starts, counted, last, now, "x")
        refused.append(finding is not None)
    return refused


def test_three_automatic_restarts_an_hour_and_no_fourth() -> None:
    assert run_starts([(0, 0), (1, 30), (2, 60), (3, 90), (4, 120)]) == [False, False, False, False, True]


SLOW = WINDOW / RESTARTS + 1
EVERY_SLOW = [(number, number * SLOW) for number in range(20)]


@pytest.mark.parametrize("slow", [SLOW, WINDOW + 60, 30 * WINDOW])
def test_a_load_that_fails_is_given_up_however_long_it_takes_to_fail(slow: float) -> None:
    assert run_starts([(number, number * slow) for number in range(5)]) == [False] * 4 + [True]


def test_a_model_that_serves_between_its_failures_is_counted_by_the_hour() -> None:
    assert not any(run_starts(EVERY_SLOW, served=[moment + SLOW / 2 for _, moment in EVERY_SLOW]))
    often = [(number, number * 600.0) for number in range(5)]
    assert run_starts(often, served=[moment + 300 for _, moment in often]) == [False] * 4 + [True]


def test_restarts_from_before_it_served_count_no_longer_than_an_hour() -> None:
    served = 2.5 * SLOW  # after the second restart: the next three are the first, second and third that were never ready
    assert run_starts(EVERY_SLOW[:7], served=[served]) == [False] * 6 + [True]


def test_when_it_served_is_what_systemd_says_and_sleep_is_no_matter() -> None:
    starts = Starts(3, (1_000.0, 2_000.0, 3_000.0))
    for ready, refused in (("", True), ("0", True), ("500000000", True), ("3100000000", False)):
        unit = {"NRestarts": "4", "ActiveEnterTimestampMonotonic": ready}
        assert (count_restart(starts, {"vllm@x.service": unit}, 10_000.0, 100.0, "x")[1] is not None) is refused


def test_requests_for_what_has_failed_are_as_few_as_automatic_restarts() -> None:
    starts, refused = Starts(), []
    for now in (30.0, 60.0, 90.0, 120.0):
        starts, finding = limit_restarts(starts, 0, None, now, "x", again=True)
        refused.append(finding is not None)
    assert refused == [False, False, False, True]
    assert limit_restarts(starts, 1, None, 130.0, "x")[1] is not None
    assert limit_restarts(starts, 0, None, 140.0, "x") == (Starts(), None)


def test_a_person_is_never_refused_and_starts_afresh() -> None:
    # NRestarts still has the old value while a manual start is prepared, and is 0 again before the next automatic one.
    given_up = [(0, 0.0), (1, 30.0), (2, 60.0), (3, 90.0), (4, 120.0)]
    by_hand = [(4, 130.0), (1, 160.0), (2, 190.0), (3, 220.0), (4, 250.0)]
    again = [(4, 260.0), (4, 261.0), (0, 262.0)]
    assert run_starts([*given_up, *by_hand, *again]) == [False] * 4 + [True] + [False] * 4 + [True] + [False] * 3


def test_an_end_that_another_machine_caused_is_not_counted_here() -> None:
    starts = Starts(3, (1_000.0, 2_000.0, 3_000.0))
    unit = {"vllm@x.service": {"NRestarts": "4"}}
    assert count_restart(starts, unit, 3_100.0, 0.0, "x", elsewhere=True) == (Starts(4, starts.at), None)
    assert count_restart(starts, unit, 3_100.0, 0.0, "x")[1] is not None
    by_hand = {"vllm@x.service": {"NRestarts": "3"}}
    assert count_restart(starts, by_hand, 3_100.0, 0.0, "x", elsewhere=True) == (Starts(), None)
