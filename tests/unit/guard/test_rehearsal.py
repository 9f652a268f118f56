"""The guard rehearses all its actions once before its memory is locked."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vllm_safe.guard.guard_actions import CgroupControl
from vllm_safe.guard.guard_decision import GuardAction
from vllm_safe.guard.guard_journal import Journal
from vllm_safe.guard.rehearsal import rehearse

ALL = {"squeeze", "freeze", "thaw", "kill", "restore"}


def test_every_act_is_decided_carried_out_and_written_down_and_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: set[str] = set()
    recorded: set[str] = set()
    write, record = CgroupControl._write, Journal.record

    def _write(self: CgroupControl, group: str, name: str, text: str) -> None:
        write(self, group, name, text)
        written.add(name)

    def _record(self: Journal, act: GuardAction) -> None:
        record(self, act)
        recorded.add(act.kind)

    monkeypatch.setattr(CgroupControl, "_write", _write)
    monkeypatch.setattr(Journal, "record", _record)
    monkeypatch.setattr(os, "setxattr", lambda *_: None)  # some file systems have no extended attributes
    (tmp_path / ".rehearsal/left").mkdir(parents=True)
    assert rehearse(str(tmp_path)) == recorded == ALL
    assert written >= {"cpu.weight", "io.weight", "cgroup.freeze", "cgroup.kill"}
    assert list(tmp_path.iterdir()) == []


def test_where_it_cannot_write_it_decides_at_least(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert rehearse(str(tmp_path / "file")) == ALL
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
