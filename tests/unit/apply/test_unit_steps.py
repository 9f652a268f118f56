"""Steps on units, with a systemctl that only logs its arguments."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from vllm_safe.apply.start_steps import missing_properties, prepare_steps, refusal_steps, undo_steps
from vllm_safe.apply.unit_steps import (
    DaemonReload,
    RemoveDropin,
    SetProperties,
    StartSocket,
    StopUnits,
    TryRestart,
    WriteDropin,
    remove_dropins,
)
from vllm_safe.common.errors import Failure
from vllm_safe.common.file_steps import WriteFile
from vllm_safe.contract.launch_file import Launch
from vllm_safe.decide.preparation import Preparation
from vllm_safe.earlyoom.earlyoom_arguments import EarlyoomFiles
from vllm_safe.host.start_facts import Starts

Calls = Callable[[], list[str]]


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Calls:
    log = tmp_path / "log"
    fake = tmp_path / "systemctl"
    fake.write_text(f'#!/bin/sh\necho "$*" >> {log}\ncase "$*" in *refused*) echo "first" >&2; echo "Unit refused." >&2; exit 1;; esac\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return lambda: log.read_text().splitlines() if log.exists() else []


def test_properties_of_a_unit_are_one_call_until_the_next_boot(calls: Calls) -> None:
    SetProperties("vllm@x.service", {"TasksMax": 5, "MemoryMax": 1}).run()
    assert calls() == ["set-property --runtime -- vllm@x.service MemoryMax=1 TasksMax=5"]


def test_earlyoom_is_not_waited_for_and_need_not_run(calls: Calls) -> None:
    TryRestart("earlyoom.service").run()
    assert calls() == ["try-restart --no-block -- earlyoom.service"]


def test_the_error_of_systemd_is_passed_on(calls: Calls) -> None:
    with pytest.raises(Failure, match=r"set-property: Unit refused\."):
        SetProperties("refused", {"MemoryMax": 1}).run()
    assert len(calls()) == 1


def test_a_socket_that_cannot_be_opened_is_named_with_its_address(calls: Calls) -> None:
    with pytest.raises(Failure, match=r"refused\.socket cannot listen on 127\.0\.0\.1:1") as failure:
        StartSocket("refused.socket", "127.0.0.1:1").run()
    assert failure.value.hint == "Another process may be listening there: systemctl status refused.socket"
    StartSocket("x.socket", "127.0.0.1:1").run()
    StopUnits(("x.socket", "x.service")).run()
    assert calls()[1:] == ["start -- x.socket", "stop -- x.socket x.service"]


def test_a_drop_in_has_its_folder_and_everybody_may_read_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[WriteFile] = []
    monkeypatch.setattr(WriteFile, "run", lambda step: written.append(step))  # noqa: PLW0108 - a method, which gets the step
    before = os.umask(0o077)
    try:
        WriteDropin(tmp_path / "x.socket.d/50-vllm-safe.conf", "[Socket]\n").run()
    finally:
        os.umask(before)
    assert (tmp_path / "x.socket.d").stat().st_mode & 0o777 == 0o755
    assert [(step.path.name, step.content, step.mode) for step in written] == [("50-vllm-safe.conf", "[Socket]\n", 0o644)]
    with pytest.raises(Failure, match="cannot make"):
        WriteDropin(tmp_path / "none/x.socket.d/50-vllm-safe.conf", "").run()


def test_without_systemctl_there_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(Failure, match="systemctl was not found"):
        DaemonReload().run()


def test_only_what_differs_is_set() -> None:
    wanted = {"a.slice": {"MemoryMin": 1}, "b.slice": {"MemoryMin": 2}, "c.slice": {"MemoryMin": 3}}
    shown = {"a.slice": {"MemoryMin": "1"}, "b.slice": {"MemoryMin": "0"}}
    assert missing_properties(wanted, shown) == (SetProperties("b.slice", {"MemoryMin": 2}), SetProperties("c.slice", {"MemoryMin": 3}))


def test_a_default_for_the_units_of_a_slice_reaches_those_that_run() -> None:
    wanted = {"a.slice": {"MemoryMin": 9, "DefaultMemoryMin": 2}, "b.scope": {"MemoryMin": 3}}
    default, rest = SetProperties("a.slice", {"DefaultMemoryMin": 2}), SetProperties("a.slice", {"MemoryMin": 9})
    present = {"a.slice": {"MemoryMin": "9", "DefaultMemoryMin": "2"}, "b.scope": {"MemoryMin": "3"}}
    assert missing_properties(wanted, present) == ()
    assert missing_properties(wanted, present | {"b.scope": {}}) == (SetProperties("b.scope", {"MemoryMin": 3}),)
    assert missing_properties(wanted, present | {"a.slice": {"MemoryMin": "9", "DefaultMemoryMin": "0"}}) == (default, DaemonReload())
    assert missing_properties(wanted, present | {"a.slice": {"MemoryMin": "9"}}) == ()  # a systemd without this property
    assert missing_properties(wanted, present | {"a.slice": {}}) == (default, DaemonReload(), rest)
    interrupted = present | {"a.slice": {"DefaultMemoryMin": "2"}}  # after the first step: it is unknown whether there was a reload
    assert missing_properties(wanted, interrupted) == (DaemonReload(), rest)


@pytest.mark.parametrize(
    ("names", "reload"),
    [
        ("", False),
        ("/etc/systemd/system/vllm@.service.d/10-mine.conf", False),
        ("/etc/systemd/system/vllm@.service.d/override.conf", True),
        ("/run/systemd/system.control/vllm@x.service.d/50-CPUQuota.conf /etc/systemd/system/vllm@x.service.d/60-mine.conf", True),
        # They have been there since systemd read its files, and keep their place.
        ("/run/systemd/system.control/x.d/50-MemoryMax.conf /run/x.d/50-TasksMax.conf /etc/systemd/system/vllm@.service.d/z.conf", False),
    ],
)
def test_dropins_of_an_admin_that_go_after_ours_make_a_reload_needed(names: str, *, reload: bool) -> None:
    step = SetProperties("vllm@x.service", {"TasksMax": 5, "MemoryMax": 1})
    steps = missing_properties({step.unit: step.properties}, {step.unit: {"MemoryMax": "2", "TasksMax": "5", "DropInPaths": names}})
    assert steps == (step, *([DaemonReload()] if reload else []))


def test_dropins_are_taken_back_with_their_folders(calls: Calls, tmp_path: Path) -> None:
    ours, shared = tmp_path / "a.slice.d", tmp_path / "b.slice.d"
    for folder in (ours, shared):
        folder.mkdir()
        (folder / "50-MemoryMin.conf").touch()
    (shared / "50-CPUQuota.conf").touch()
    for step in remove_dropins([ours / "50-MemoryMin.conf", shared / "50-MemoryMin.conf"]):
        step.run()
    assert not ours.exists()
    assert [path.name for path in shared.iterdir()] == ["50-CPUQuota.conf"]
    assert calls() == ["daemon-reload"]


def test_with_nothing_to_take_back_there_is_no_reload() -> None:
    assert undo_steps((), EarlyoomFiles()) == ()


def described(plan: Preparation, earlyoom: EarlyoomFiles | None = None) -> list[str]:
    return [step.describe() for step in prepare_steps(plan, {}, earlyoom or EarlyoomFiles())]


DROPIN = "/run/systemd/system/earlyoom.service.d/50-vllm-safe.conf"


def test_earlyoom_is_restarted_only_when_a_file_of_it_changes() -> None:
    ours = EarlyoomFiles("new", "drop-in")
    assert described(Preparation(earlyoom=ours), ours) == []
    assert described(Preparation(earlyoom=ours), EarlyoomFiles("old", "drop-in")) == [
        "write /var/lib/vllm-safe/earlyoom.env (root:root 0644)",
        "restart earlyoom.service if it runs",
    ]


def test_at_boot_the_drop_in_of_earlyoom_is_written_again() -> None:
    assert described(Preparation(earlyoom=EarlyoomFiles("same", "drop-in")), EarlyoomFiles("same")) == [
        f"write {DROPIN} (root:root 0644)",
        "reload systemd's unit files (daemon-reload)",
        "restart earlyoom.service if it runs",
    ]


def test_switched_off_nothing_of_ours_is_left_to_earlyoom() -> None:
    assert described(Preparation(), EarlyoomFiles("arguments", "drop-in")) == [
        "remove /var/lib/vllm-safe/earlyoom.env",
        f"remove {DROPIN}",
        "reload systemd's unit files (daemon-reload)",
        "restart earlyoom.service if it runs",
    ]


def test_a_start_writes_its_key_its_log_and_last_of_all_the_launch_file() -> None:
    plan = Preparation(launch=Launch("x"), key="sesame", starts=Starts(1, (2.0,)))
    assert described(plan) == [
        "write /run/vllm-safe/credentials/x.api-key (root:root 0600)",
        "write /run/vllm-safe/starts/x (root:root 0644)",
        "write /run/vllm-safe/launch/x.json (root:vllm 0640)",
    ]


def test_the_key_of_an_earlier_start_is_removed() -> None:
    assert "remove /run/vllm-safe/credentials/x.api-key" in described(Preparation(launch=Launch("x"), old_key=True))


def test_a_refusal_is_the_launch_file_alone() -> None:
    (step,) = refusal_steps("x", "what", "next")
    assert step.describe() == "write /run/vllm-safe/launch/x.json (root:vllm 0640), refusing the start: what"


def test_the_order_is_limits_before_the_launch_file() -> None:
    steps = prepare_steps(Preparation(units={"vllm@x.service": {"MemoryMax": 1}}, launch=Launch("x")), {}, EarlyoomFiles())
    assert isinstance(steps[0], SetProperties)
    assert steps[-1].describe().startswith("write /run/vllm-safe/launch/")


def test_describing_names_the_file() -> None:
    assert RemoveDropin(Path("/run/x.conf")).describe() == "remove /run/x.conf"
