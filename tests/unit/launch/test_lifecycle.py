"""What the main process decides at each event, without a process or a clock."""

from __future__ import annotations

import signal

import pytest

from vllm_safe.launch.lifecycle import Action, Kill, Lifecycle, Phase, Quit, Say, Send, Tell
from vllm_safe.launch.plan import Launch
from vllm_safe.launch.probe import Answer

LAUNCH = Launch("demo", health="http://127.0.0.1:8000/health", start_timeout=600, stop_grace=120)
REFUSED = Answer("refuses connections")
HEALTHY = Answer("answers 200", healthy=True)
EXIT_0, EXIT_1, EXIT_2, EXIT_127, KILLED = 0, 1 << 8, 2 << 8, 127 << 8, 9


def _loading() -> Lifecycle:
    return Lifecycle(LAUNCH, 1000.0)


def _serving() -> Lifecycle:
    life = _loading()
    life.answered(1200.0, HEALTHY)
    return life


def _told(actions: list[Action], field: str) -> str | None:
    return next((action.fields[field] for action in actions if isinstance(action, Tell) and field in action.fields), None)


def _quit(actions: list[Action]) -> int | None:
    return next((action.code for action in actions if isinstance(action, Quit)), None)


def _said(actions: list[Action]) -> str:
    return "\n".join(action.text for action in actions if isinstance(action, Say))


def test_tells_how_long_it_loads() -> None:
    life = _loading()
    life.answered(1199.0, REFUSED)
    assert _told(life.tick(1200.0), "STATUS") == "loading, 3 min 20 s"
    assert life.tick(1201.0) == []
    assert life.due == 1205.0


@pytest.mark.parametrize("text", ["answers 503", "does not answer within 5 s"])
def test_tells_what_a_server_that_listens_but_is_not_ready_does(text: str) -> None:
    life = _loading()
    assert life.answered(1004.0, Answer(text)) == []
    assert _told(life.tick(1200.0), "STATUS") == f"loading, 3 min 20 s; http://127.0.0.1:8000/health {text}"


def test_ready_is_told_once() -> None:
    life = _loading()
    actions = life.answered(1200.0, HEALTHY)
    assert _told(actions, "READY") == "1"
    assert _told(actions, "STATUS") == "ready, serving demo on http://127.0.0.1:8000"
    assert "ready after 3 min 20 s" in _said(actions)
    assert life.answered(1201.0, HEALTHY) == []
    assert life.tick(9e9) == []
    assert life.due is None


def test_a_start_that_takes_too_long_is_ended_as_a_failure() -> None:
    life = _loading()
    life.answered(1300.0, Answer("answers 503"))
    actions = life.tick(1600.0)
    assert _told(actions, "STATUS") == "not ready within 10 min (start_timeout): http://127.0.0.1:8000/health answers 503"
    assert Send(signal.SIGTERM) in actions
    assert life.tick(1602.0) == [Send(signal.SIGTERM)]
    assert _quit(life.exited(1603.0, EXIT_0, "")) == 1


@pytest.mark.parametrize(("status", "code"), [(EXIT_0, 1), (EXIT_1, 1), (EXIT_2, 2), (126 << 8, 2), (EXIT_127, 2), (KILLED, 1), (2, 1)])
def test_an_end_before_ready_is_tried_again_unless_it_never_can_work(status: int, code: int) -> None:
    life = _loading()
    assert _quit(life.exited(1004.0, status, "")) == code


def test_an_end_before_ready_says_what_the_server_said_last() -> None:
    actions = _loading().exited(1004.0, EXIT_1, "ValueError: no such model")
    expected = "the server ended after 4 s, before it was ready (exit status 1): ValueError: no such model"
    assert _told(actions, "STATUS") == expected
    assert Say(expected, level=3) in actions


@pytest.mark.parametrize("status", [EXIT_0, EXIT_1, EXIT_2, KILLED])
def test_an_end_while_serving_is_always_a_failure_to_try_again(status: int) -> None:
    actions = _serving().exited(4800.0, status, "")
    assert _quit(actions) == 1
    assert "ended by itself after serving for 1 h" in (_told(actions, "STATUS") or "")


def test_nothing_follows_the_end() -> None:
    life = _loading()
    life.exited(1004.0, EXIT_1, "")
    assert life.tick(9e9) == []
    assert life.answered(1005.0, HEALTHY) == []
    assert life.due is None


def test_stopping_gives_requests_their_time_then_kills() -> None:
    life = _serving()
    actions = life.asked_to_stop(2000.0)
    assert _told(actions, "STOPPING") == "1"
    assert _told(actions, "STATUS") == "stopping: running requests have 2 min"
    assert int(_told(actions, "EXTEND_TIMEOUT_USEC") or 0) > 120_000_000
    assert Send(signal.SIGTERM) in actions
    assert life.tick(2119.0) == []
    assert life.due == 2120.0
    assert Kill() in life.tick(2120.0)
    assert _quit(life.exited(2120.1, KILLED, "")) == 0


def test_stopping_while_loading_asks_twice_and_does_not_wait_for_requests() -> None:
    life = _loading()
    assert Send(signal.SIGTERM) in life.asked_to_stop(1005.0)
    assert life.tick(1006.0) == []
    assert life.tick(1007.0) == [Send(signal.SIGTERM)]
    assert life.tick(1024.0) == []
    assert Kill() in life.tick(1025.0)


def test_a_short_grace_goes_before_the_second_request() -> None:
    life = Lifecycle(Launch("demo", stop_grace=1), 1000.0)
    life.asked_to_stop(1005.0)
    assert Kill() in life.tick(1006.0)
    assert life.due == 1008.0


def test_what_does_not_die_is_left_to_systemd() -> None:
    life = _serving()
    life.asked_to_stop(2000.0)
    life.tick(2120.0)
    assert life.tick(2121.0) == []
    assert _quit(life.tick(2122.0)) == 0
    assert life.phase is Phase.ENDED


def test_a_stop_while_a_failed_start_is_ended_is_a_stop() -> None:
    life = _loading()
    life.tick(1600.0)
    assert life.asked_to_stop(1601.0) == []
    assert _quit(life.exited(1602.0, EXIT_1, "")) == 0


def test_a_second_request_to_stop_changes_nothing() -> None:
    life = _serving()
    life.asked_to_stop(2000.0)
    assert life.asked_to_stop(2100.0) == []
    assert life.due == 2120.0
