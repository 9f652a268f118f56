"""Waiting in a bed: how long between two looks."""

from __future__ import annotations

import pytest

from tests.beds import machine
from tests.beds.machine import BedError, Machine


class Clock:
    """A time that only looks and pauses spend, in place of the module `time`."""

    def __init__(self) -> None:
        self.now = 0.0
        self.pauses: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds

    def look(self, *, takes: float, holds_from: float) -> bool:
        self.now += takes
        return self.now >= holds_from


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(machine, "time", made)
    return made


class NoMachine(Machine):
    """Something to wait with."""

    stop = put = _execute = None  # type: ignore[assignment]


@pytest.mark.parametrize(("takes", "pause"), [(0.01, 0.2), (1.0, 3.0), (3.0, 5.0), (8.0, 8.0)])
def test_quick_looks_take_a_quarter_of_the_time_at_most_and_slow_ones_half(clock: Clock, takes: float, pause: float) -> None:
    NoMachine().wait_for("", lambda: clock.look(takes=takes, holds_from=10))
    assert clock.now < 10 + takes + pause
    assert set(clock.pauses) == {pause}


def test_there_is_a_look_when_the_time_is_over(clock: Clock) -> None:
    with pytest.raises(BedError, match="waited 5 s in vain: it"):
        NoMachine().wait_for("it", lambda: clock.look(takes=1, holds_from=100), timeout=5)
    assert clock.now == 9  # looks at 0, 4 and 8 s
