"""The record and the status of a unit that has ended, for every kind of end."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import pytest

from vllm_safe.contract import state_file
from vllm_safe.launch import stop_post


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    said: list[str] = []
    monkeypatch.setattr(state_file, "STATE_FOLDER", tmp_path)
    monkeypatch.setattr(stop_post, "EVENTS_FOLDER", str(tmp_path / "guard"))
    monkeypatch.setattr(stop_post, "notify", lambda **fields: said.append(fields["STATUS"]))
    monkeypatch.setattr(stop_post, "own_cgroup", lambda: tmp_path)
    monkeypatch.setattr(sys, "argv", ["vllm-safe-ended", "demo"])
    for key, value in {"INVOCATION_ID": "run1", "SERVICE_RESULT": "oom-kill", "EXIT_CODE": "killed", "EXIT_STATUS": "KILL"}.items():
        monkeypatch.setenv(key, value)
    (tmp_path / "memory.events").write_text("low 0\nhigh 0\nmax 14\noom 1\noom_kill 3\n")
    return said


def _state(folder: Path, **changes: str) -> None:
    values = {"run": "run1", "cause": "hang", "reason": "2 requests run and no token counter moves"} | changes
    (folder / "demo.json").write_text(json.dumps(values))


def test_writes_what_systemd_and_the_kernel_know(told: list[str], tmp_path: Path) -> None:
    stop_post.main()
    end = json.loads((tmp_path / "demo.end.json").read_text())
    assert (end["run"], end["result"], end["exit_code"], end["exit_status"], end["cause"]) == ("run1", "oom-kill", "killed", "KILL", "")
    assert end["memory_events"]["oom_kill"] == 3
    assert end["swap_events"] == {}
    assert told == ["killed by the kernel: out of memory"]


@pytest.mark.parametrize(
    ("event", "said"),
    [
        ({"act": "kill", "text": "killed by the vllm-safe guard"}, "demo was killed by the vllm-safe guard"),
        ({"act": "kill", "text": "killed", "time": 1.0}, "killed by the kernel: out of memory"),
        ({"act": "thaw", "text": "thawed"}, "killed by the kernel: out of memory"),
        ({}, "killed by the kernel: out of memory"),
        ([], "killed by the kernel: out of memory"),
    ],
)
def test_the_guard_is_named_if_it_was_the_guard(told: list[str], tmp_path: Path, event: object, said: str) -> None:
    (tmp_path / "guard").mkdir()
    line = {"time": time.time(), **event} if isinstance(event, dict) else event
    (tmp_path / "guard/demo.jsonl").write_text(f'{{"act": "squeeze"}}\n{json.dumps(line)}\n')
    stop_post.main()
    assert told == [said]


@pytest.mark.parametrize(
    ("started", "said"),
    [(900, "demo was killed"), (100, "killed by the kernel: out of memory"), ("?", "killed by the kernel: out of memory")],
)
def test_a_kill_counts_since_the_run_began_however_slow_the_machine_is(
    told: list[str], tmp_path: Path, started: float | str, said: str
) -> None:
    (tmp_path / "guard").mkdir()
    (tmp_path / "guard/demo.jsonl").write_text(json.dumps({"time": time.time() - 300, "act": "kill", "text": "killed"}))
    began = time.time() - started if isinstance(started, int) else started
    (tmp_path / "demo.json").write_text(json.dumps({"run": "run1", "started": began}))
    stop_post.main()
    assert told == [said]


@pytest.mark.parametrize(
    ("acts", "said"),
    [
        (["freeze", "kill", "thaw"], "demo was killed"),
        (["squeeze", "kill", "thaw", "restore"], "demo was killed"),
        (["kill", "thaw", "squeeze"], "killed by the kernel: out of memory"),  # the kill was in the previous run
        (["squeeze", "freeze", "thaw"], "killed by the kernel: out of memory"),
        (["thaw"], "killed by the kernel: out of memory"),
    ],
)
def test_a_model_that_was_killed_while_frozen_was_thawed_to_die(told: list[str], tmp_path: Path, acts: list[str], said: str) -> None:
    (tmp_path / "guard").mkdir()
    lines = [json.dumps({"time": time.time(), "act": act, "text": "killed" if act == "kill" else act}) for act in acts]
    (tmp_path / "guard/demo.jsonl").write_text("".join(f"{line}\n" for line in lines))
    stop_post.main()
    assert told == [said]


def test_what_the_main_process_said_stays(told: list[str], tmp_path: Path) -> None:
    _state(tmp_path)
    stop_post.main()
    end = json.loads((tmp_path / "demo.end.json").read_text())
    assert (end["cause"], end["reason"]) == ("hang", "2 requests run and no token counter moves")
    assert told == []


@pytest.mark.parametrize("text", ["", "[]", "{", '{"run": 3}'])
def test_a_state_that_is_none_or_another_runs_is_not_believed(told: list[str], tmp_path: Path, text: str) -> None:
    (tmp_path / "demo.json").write_text(text)
    stop_post.main()
    assert len(told) == 1
    _state(tmp_path, run="run0")
    stop_post.main()
    assert json.loads((tmp_path / "demo.end.json").read_text())["cause"] == ""


def test_nothing_is_written_through_a_link(told: list[str], tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "demo.end.json.new").symlink_to(tmp_path / "mine")
    stop_post.main()
    assert (tmp_path / "mine").read_text() == "mine"
    assert told


def test_a_folder_that_is_not_there_harms_nobody(told: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_file, "STATE_FOLDER", tmp_path / "none")
    stop_post.main()
    assert told
    assert not os.path.lexists(tmp_path / "none")
