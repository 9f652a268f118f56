"""Writes to cgroups, on a directory that stands in for them: its files keep what is written."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

import pytest

from vllm_safe.common import libc
from vllm_safe.guard.guard_actions import MARK, CgroupControl
from vllm_safe.guard.guard_decision import GuardAction

UNIT = "vllm@hog.service"
BEST_EFFORT = 2 << 13


@pytest.fixture
def root(tmp_path: Path) -> Path:
    try:
        os.setxattr(tmp_path, MARK, b"x")
        os.removexattr(tmp_path, MARK)
    except OSError:
        pytest.skip("no extended attributes on this file system")
    for group in ("vllm.slice", f"vllm.slice/{UNIT}"):
        (tmp_path / group).mkdir()
        (tmp_path / group / "cpu.weight").write_text("10\n")
        (tmp_path / group / "io.weight").write_text("default 5\n")
        (tmp_path / group / "cgroup.freeze").write_text("0\n")
        (tmp_path / group / "cgroup.kill").write_text("")
    (tmp_path / "system.slice").mkdir()
    (tmp_path / "system.slice/cgroup.kill").write_text("")
    return tmp_path


def value(root: Path, name: str, group: str = f"vllm.slice/{UNIT}") -> str:
    return (root / group / name).read_text().split("\n")[0][:1]


def marked(root: Path) -> bool:
    return any(MARK in os.listxattr(folder) for folder in (root / "vllm.slice", root / "vllm.slice" / UNIT))


def test_a_squeeze_takes_the_share_of_the_slice_too_and_a_restore_gives_both_back(root: Path) -> None:
    hands = CgroupControl(str(root))
    assert hands.do(GuardAction("squeeze", UNIT, "")) == ""
    assert [value(root, "cpu.weight", group) for group in ("vllm.slice", f"vllm.slice/{UNIT}")] == ["1", "1"]
    hands.hold()
    assert marked(root)
    assert hands.do(GuardAction("restore", UNIT, "")) == ""
    assert (root / "vllm.slice/cpu.weight").read_text().startswith("10")
    assert value(root, "io.weight") == "5"
    assert not marked(root)


def test_what_systemd_writes_meanwhile_is_overwritten_and_is_what_comes_back(root: Path) -> None:
    hands = CgroupControl(str(root))
    hands.do(GuardAction("squeeze", UNIT, ""))
    (root / "vllm.slice" / UNIT / "cpu.weight").write_text("77\n")
    hands.hold()
    assert value(root, "cpu.weight") == "1"
    hands.do(GuardAction("restore", UNIT, ""))
    assert (root / "vllm.slice" / UNIT / "cpu.weight").read_text().startswith("77")


def test_who_comes_after_a_killed_guard_takes_everything_back(root: Path) -> None:
    hands = CgroupControl(str(root))
    hands.do(GuardAction("squeeze", UNIT, ""))
    hands.do(GuardAction("freeze", UNIT, ""))
    assert value(root, "cgroup.freeze") == "1"
    assert CgroupControl(str(root)).recover() == ["vllm.slice", UNIT]
    assert value(root, "cgroup.freeze") == "0"
    assert (root / "vllm.slice/cpu.weight").read_text().startswith("10")
    assert not marked(root)
    assert CgroupControl(str(root)).recover() == []


def test_what_somebody_else_froze_stays_frozen(root: Path) -> None:
    (root / "vllm.slice" / UNIT / "cgroup.freeze").write_text("1\n")
    hands = CgroupControl(str(root))
    hands.recover()
    hands.do(GuardAction("thaw", UNIT, ""))
    assert value(root, "cgroup.freeze") == "1"


@pytest.mark.parametrize("unit", ["../system.slice", "..", "a/b", "."])
def test_nothing_outside_the_slice_is_touched(root: Path, unit: str) -> None:
    hands = CgroupControl(str(root))
    for kind in ("squeeze", "freeze", "thaw", "restore", "kill"):
        assert hands.do(GuardAction(kind, unit, "")) != ""
    assert (root / "system.slice/cgroup.kill").read_text() == ""
    assert (root / "vllm.slice/cgroup.kill").read_text() == ""


def test_a_cgroup_that_is_gone_is_no_mistake(root: Path) -> None:
    hands = CgroupControl(str(root))
    for kind in ("squeeze", "freeze", "thaw", "restore", "kill"):
        assert hands.do(GuardAction(kind, "vllm@gone.service", "")) == ""
    hands.hold()
    assert value(root, "cpu.weight", "vllm.slice") == "1" or not marked(root)


def test_every_thread_gets_the_class_idle_and_what_it_had_comes_back(root: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as one, subprocess.Popen(["sleep", "60"]) as two:
        libc.set_io_priority(one.pid, BEST_EFFORT | 6)
        libc.set_io_priority(two.pid, BEST_EFFORT | 6)
        (root / "vllm.slice" / UNIT / "cgroup.threads").write_text(f"{one.pid}\n{two.pid}\n")
        hands = CgroupControl(str(root))
        assert hands.do(GuardAction("squeeze", UNIT, "")) == ""
        assert [libc.io_priority(process.pid) >> 13 for process in (one, two)] == [3, 3]
        libc.set_io_priority(two.pid, BEST_EFFORT | 2)
        hands.hold()
        assert libc.io_priority(max(one.pid, two.pid)) >> 13 == 3
        assert CgroupControl(str(root)).recover() == ["vllm.slice", UNIT]
        assert all(libc.io_priority(process.pid) >> 13 == 2 for process in (one, two))
        one.kill()
        two.kill()
    assert not marked(root)


def test_a_limit_that_cannot_be_set_is_told_once_and_keeps_none_of_the_others(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def refused(*arguments: int) -> None:
        tried.append(arguments)
        raise PermissionError(errno.EPERM, "Operation not permitted")

    (root / "vllm.slice" / UNIT / "cgroup.threads").write_text(f"{os.getpid()}\n")
    monkeypatch.setattr(libc, "set_io_priority", refused)
    hands = CgroupControl(str(root))
    assert "ioprio: [Errno 1] Operation not permitted" in hands.do(GuardAction("squeeze", UNIT, ""))
    for _ in range(3):
        hands.hold()
    assert len(tried) == 1
    assert value(root, "cpu.weight") == "1"
    assert hands.do(GuardAction("restore", UNIT, "")) == ""
    assert value(root, "io.weight") == "5"
    assert not marked(root)


def test_a_cgroup_that_goes_while_it_is_held_again_is_no_mistake(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hands = CgroupControl(str(root))
    hands.do(GuardAction("squeeze", UNIT, ""))
    (root / "vllm.slice" / UNIT / "cpu.weight").write_text("77\n")

    def gone(*_: object) -> None:
        raise OSError(errno.ENODEV, "No such device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "setxattr", gone)
        patch.setattr(os, "removexattr", gone)
        hands.hold()
        CgroupControl(str(root)).recover()
    hands.hold()


def test_what_cannot_be_taken_back_later_is_not_done(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "setxattr", refused)
    hands = CgroupControl(str(root))
    assert "Operation not supported" in hands.do(GuardAction("squeeze", UNIT, ""))
    assert "Operation not supported" in hands.do(GuardAction("freeze", UNIT, ""))
    assert (value(root, "cpu.weight"), value(root, "cgroup.freeze")) == ("1", "0")
    assert (root / "vllm.slice" / UNIT / "cpu.weight").read_text() == "10\n"


def test_an_old_kernel_cannot_kill_a_cgroup(root: Path) -> None:
    (root / "vllm.slice" / UNIT / "cgroup.kill").unlink()
    assert "cgroup.kill" in CgroupControl(str(root)).do(GuardAction("kill", UNIT, ""))
