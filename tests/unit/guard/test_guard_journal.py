"""The messages of the guard, and its files of events."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from vllm_safe.guard.guard_decision import GuardAction
from vllm_safe.guard.guard_journal import KEPT_LINES, MOST_LINES, Journal, event_line, model_name


def test_an_act_is_one_line_of_json() -> None:
    act = GuardAction(
        "squeeze", "vllm@x.service", 'a "text"\nwith \\ and \x1b[1m', {"system.slice memory full": 0.42, "swap free MiB": 3197}
    )
    line = event_line(act, 12.5)
    assert line.count("\n") == 1
    assert json.loads(line) == {"time": 12.5, "act": "squeeze", "text": 'a "text"?with \\ and ?[1m', "readings": act.readings}


def test_the_journal_knows_which_unit_it_is_about(tmp_path: Path) -> None:
    address = str(tmp_path / "journal")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(address)
        journal = Journal(str(tmp_path), address)
        journal.record(GuardAction("kill", "vllm@x.service", "killed", {"a": 1}))
        said = listener.recv(65536).decode()
    assert "MESSAGE=vllm@x.service killed (a 1)\n" in said
    assert "OBJECT_SYSTEMD_UNIT=vllm@x.service\n" in said
    assert "PRIORITY=3\n" in said


def test_a_journal_that_is_not_there_stops_nothing(tmp_path: Path) -> None:
    Journal(str(tmp_path / "none"), str(tmp_path / "nobody")).record(GuardAction("thaw", "vllm@x.service", ""))


def test_the_events_are_bounded_and_the_latest_stay(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path), "")
    for number in range(MOST_LINES + 10):
        journal.record(GuardAction("thaw", "vllm@x.service", str(number)))
    lines = [json.loads(line)["text"] for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    assert len(lines) == KEPT_LINES + 10
    assert lines[-1] == str(MOST_LINES + 9)
    Journal(str(tmp_path), "").record(GuardAction("thaw", "vllm@x.service", "after a restart"))
    assert len((tmp_path / "x.jsonl").read_text().splitlines()) == KEPT_LINES + 11


@pytest.mark.parametrize(("unit", "name"), [("vllm@qwen-7b.service", "qwen-7b"), ("vllm-safe-drill.service", "vllm-safe-drill")])
def test_a_unit_without_its_type_is_the_name(unit: str, name: str) -> None:
    assert model_name(unit) == name
