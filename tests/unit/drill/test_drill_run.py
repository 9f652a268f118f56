"""The course of a drill, with a fake hog and fake probes: whatever happens, the hog is stopped."""

from __future__ import annotations

import time
from itertools import count

import pytest

from vllm_safe.common.errors import Failure
from vllm_safe.drill import drill_run, login_probes
from vllm_safe.drill.drill_decision import Hog, judge_drill

HOG = Hog(size=100, processes=1, full=50)


class Pretend:
    """A fake StartHog."""

    def __init__(self, *, ended: bool = False) -> None:
        self.touched = [10, 20]
        self.ended = ended
        self.calls: list[str] = []

    def run(self) -> None:
        self.calls.append("run")

    def stop(self) -> None:
        self.calls.append("stop")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(login_probes, "EVERY", 0.01)
    monkeypatch.setattr(login_probes, "time_login", lambda: 0.01)
    monkeypatch.setattr(login_probes, "time_ssh", lambda: None)
    monkeypatch.setattr(drill_run, "_TICK", 0.05)
    monkeypatch.setattr(drill_run, "_pass", lambda _seconds, show: show(1.0))
    monkeypatch.setattr(drill_run, "memory", lambda: (40, 20))
    monkeypatch.setattr(drill_run, "occupants", lambda: ())


def drill(step: Pretend, seconds: float = 0.5) -> tuple[drill_run.DrillProgress, list[str]]:
    shown: list[str] = []
    return drill_run.run_drill(step, HOG, seconds, shown.append), shown  # type: ignore[arg-type]


def test_it_measures_and_stops_the_hog() -> None:
    step = Pretend()
    course, shown = drill(step)
    assert step.calls == ["run", "stop"]
    assert (course.ram, course.swap, course.pages, course.ended) == (40, 20, 10.0, None)
    assert course.pressed.near > 0.5
    assert course.pressed[1:] == (1.0, 20)
    assert course.idle.values(login_probes.LOGIN)
    assert course.drill.values(login_probes.LOGIN)
    assert course.recovered is not None
    assert any(line.startswith("drill, 0 s to go: login 0.0 s, worst 0.0") for line in shown)


def test_a_hog_that_ends_by_itself_ends_the_drill() -> None:
    course, _ = drill(Pretend(ended=True), 300.0)
    assert course.ended is not None
    assert course.pressed[:2] == (0.0, 0.0)
    assert "time that the hog lived" in [line.what for line in judge_drill(course.idle, course.drill, course.pressed) if not line.met]


def test_what_was_before_the_hog_pressed_is_no_part_of_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    start, looks = time.monotonic(), count()
    monkeypatch.setattr(drill_run, "memory", lambda: (40, 20 if next(looks) >= 10 else 0))
    course, _ = drill(Pretend())
    assert course.drill.since == course.since > start
    assert course.until >= course.since + 0.5
    assert 0 < len(course.drill.pressed(login_probes.LOGIN)) < len(course.drill.values(login_probes.LOGIN))
    assert course.pressed.near > 0.5


def test_a_hog_that_is_killed_while_it_presses_is_seen_by_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = count()
    monkeypatch.setattr(drill_run, "memory", lambda: (40, 20) if next(looks) < 10 else (0, 0))
    course, _ = drill(Pretend(), 300.0)
    assert course.ended is not None
    assert 0 < course.pressed.lived < 0.1


def test_a_hog_that_ended_during_the_last_tick_did_not_live(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drill_run, "_TICK", 60.0)
    step, sleep = Pretend(), time.sleep

    def end(seconds: float) -> None:
        sleep(seconds)
        step.ended = True

    monkeypatch.setattr(time, "sleep", end)
    course, _ = drill(step)
    assert course.ended is not None
    assert course.pressed.lived == 0.0


def test_a_model_that_is_started_ends_the_drill(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drill_run, "occupants", lambda: ("vllm@x.service",))
    step = Pretend()
    with pytest.raises(Failure, match=r"vllm@x\.service was started"):
        drill(step)
    assert step.calls == ["run", "stop"]


def test_ctrl_c_stops_the_hog(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> tuple[str, ...]:
        raise KeyboardInterrupt

    monkeypatch.setattr(drill_run, "occupants", interrupt)
    step = Pretend()
    with pytest.raises(KeyboardInterrupt):
        drill(step)
    assert step.calls == ["run", "stop"]


def test_where_no_login_works_there_is_no_drill(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(login_probes, "time_login", lambda: None)
    step = Pretend()
    with pytest.raises(Failure, match="no login succeeded"):
        drill(step)
    assert step.calls == []


def test_a_machine_that_does_not_come_back_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drill_run, "RECOVERY", 0.1)
    monkeypatch.setattr(drill_run, "bound_usual", lambda _: 0.001)
    assert drill(Pretend())[0].recovered is None
