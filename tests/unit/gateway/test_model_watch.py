"""What the gateway reads of a model's state."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from vllm_safe.contract import launch_file, state_file
from vllm_safe.contract.state_file import LoadProgress, State
from vllm_safe.gateway import model_watch
from vllm_safe.gateway.model_watch import ModelWatch, SeenModel
from vllm_safe.gateway.queue_decision import COMING, DOWN, FAILED, GOING, READY


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_file, "STATE_FOLDER", tmp_path)
    monkeypatch.setattr(launch_file, "LAUNCH_FOLDER", tmp_path / "launch")
    monkeypatch.setattr(model_watch, "CONFIG", tmp_path / "config.yaml")
    (tmp_path / "launch").mkdir()


def write(phase: str, *, ago: float = 0.0, **more: object) -> SeenModel:
    now = time.time() - ago
    state = State("a", "run", 1, now, now - 90, phase, now - 30, **more)  # type: ignore[arg-type]
    state_file.write_state(state)
    return ModelWatch().look("a")


def started_by_request(number: int) -> None:
    launch_file.launch_file("a").write_text(json.dumps({"request": number}))
    os.utime(launch_file.launch_file("a"), (0, 0))


def test_without_a_file_it_is_down() -> None:
    assert ModelWatch().look("a") == SeenModel()


@pytest.mark.parametrize(("phase", "seen"), [("waiting", COMING), ("loading", COMING), ("ready", READY), ("stopping", GOING)])
def test_phases(phase: str, seen: str) -> None:
    assert write(phase).phase == seen


def test_the_load_is_what_it_took_to_be_ready() -> None:
    assert write("ready").load == pytest.approx(60)
    assert write("loading").load == 0


def test_a_person_has_started_it_unless_the_launch_file_names_a_request() -> None:
    assert write("ready").pinned
    started_by_request(0)
    assert write("ready").pinned
    started_by_request(7)
    assert not write("ready").pinned
    launch_file.launch_file("a").write_text("[]")
    assert write("ready").pinned


def test_the_time_that_is_left() -> None:
    assert write("loading", progress=LoadProgress(1, 2, 3.0, 40.0)).left == 40


@pytest.mark.parametrize("cause", ["stopped", "room", "idle", ""])
def test_what_was_stopped_has_not_failed(cause: str) -> None:
    found = write("ended", cause=cause)
    assert (found.phase, found.crashed) == (DOWN, False)


def test_a_server_that_served_and_ended_is_started_again() -> None:
    found = write("ended", cause="exited", served=True)
    assert (found.phase, found.crashed) == (DOWN, True)


def test_a_start_that_failed_says_why_until_something_changes(tmp_path: Path) -> None:
    found = write("ended", cause="stall", reason="nothing moved.", ago=10)
    assert (found.phase, found.problem) == (FAILED, "a failed to start: nothing moved. See: vllm-safe why a")
    (tmp_path / "config.yaml").write_text("")
    assert ModelWatch().look("a").phase == DOWN


def test_a_start_that_failed_says_what_ended_the_server() -> None:
    reason, text = "the server ended after 7 s, before it was ready (exit status 1)", "a exited: max-model-len 9999 exceeds 2048."
    found = write("ended", cause="exited", reason=reason, text=text)
    assert found.problem == "a failed to start: it exited: max-model-len 9999 exceeds 2048. See: vllm-safe why a"


def test_a_state_that_nobody_writes_any_more_is_not_believed() -> None:
    assert write("ready", ago=500).phase == DOWN
    assert write("loading", ago=500).phase == DOWN


def test_after_a_suspend_a_state_has_time_to_be_written_again(monkeypatch: pytest.MonkeyPatch) -> None:
    write("ready")
    watch = ModelWatch()
    assert watch.look("a").phase == READY
    clock, monotonic = time.time, time.monotonic
    monkeypatch.setattr(time, "time", lambda: clock() + 500)
    assert watch.look("a").phase == READY
    monkeypatch.setattr(time, "time", lambda: clock() + 620)
    monkeypatch.setattr(time, "monotonic", lambda: monotonic() + 120)
    assert watch.look("a").phase == DOWN


def test_a_changed_file_is_read_again_at_once() -> None:
    watch = ModelWatch()
    for phase, seen in [("loading", COMING), ("ready", READY), ("stopping", GOING)] * 20:
        write(phase)
        assert watch.look("a").phase == seen
    assert watch.last_load("a") == pytest.approx(60)


def test_a_failure_that_was_noted_holds_until_there_is_a_new_state() -> None:
    watch = ModelWatch()
    write("ended", cause="stopped", ago=5)
    watch.note_failure("a", "systemd did not start it")
    assert (watch.look("a").phase, watch.look("a").problem) == (FAILED, "systemd did not start it")
    write("loading")
    assert watch.look("a").phase == COMING


@pytest.mark.parametrize("text", ["", "{", "[]", '{"phase": "ready"}', '{"phase": "x", "time": 1, "started": 1, "since": 1, "pid": 1}'])
def test_any_other_text_is_no_state(text: str) -> None:
    state_file.state_file("a").write_text(text)
    assert ModelWatch().look("a").phase == DOWN
