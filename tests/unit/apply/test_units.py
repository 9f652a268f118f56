"""Steps on units, against a systemctl that only notes what it was told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from vllm_safe.apply.prepare import prepare_steps, refusal_steps, undo_steps
from vllm_safe.apply.units import DaemonReload, RemoveDropin, SetProperties, TryRestart, missing_properties, remove_dropins
from vllm_safe.decide.prepare import Preparation
from vllm_safe.errors import Failure
from vllm_safe.host.start import Starts
from vllm_safe.launch.plan import Launch

Told = Callable[[], list[str]]


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Told:
    log = tmp_path / "log"
    fake = tmp_path / "systemctl"
    fake.write_text(f'#!/bin/sh\necho "$*" >> {log}\ncase "$*" in *refused*) echo "first" >&2; echo "Unit refused." >&2; exit 1;; esac\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return lambda: log.read_text().splitlines() if log.exists() else []


def test_properties_of_a_unit_are_one_call_until_the_next_boot(told: Told) -> None:
    SetProperties("vllm@x.service", {"TasksMax": 5, "MemoryMax": 1}).run()
    assert told() == ["set-property --runtime -- vllm@x.service MemoryMax=1 TasksMax=5"]


def test_earlyoom_is_not_waited_for_and_need_not_run(told: Told) -> None:
    TryRestart("earlyoom.service").run()
    assert told() == ["try-restart --no-block -- earlyoom.service"]


def test_what_systemd_says_is_passed_on(told: Told) -> None:
    with pytest.raises(Failure, match=r"set-property: Unit refused\."):
        SetProperties("refused", {"MemoryMax": 1}).run()
    assert len(told()) == 1


def test_without_systemctl_there_is_a_clear_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(Failure, match="systemctl is not there"):
        DaemonReload().run()


def test_only_what_differs_is_set() -> None:
    wanted = {"a.slice": {"MemoryMin": 1}, "b.slice": {"MemoryMin": 2}, "c.slice": {"MemoryMin": 3}}
    shown = {"a.slice": {"MemoryMin": "1"}, "b.slice": {"MemoryMin": "0"}}
    assert missing_properties(wanted, shown) == (SetProperties("b.slice", {"MemoryMin": 2}), SetProperties("c.slice", {"MemoryMin": 3}))


def test_a_default_for_the_units_of_a_slice_reaches_those_that_run() -> None:
    wanted = {"a.slice": {"MemoryMin": 9, "DefaultMemoryMin": 2}, "b.scope": {"MemoryMin": 3}}
    default, rest = SetProperties("a.slice", {"DefaultMemoryMin": 2}), SetProperties("a.slice", {"MemoryMin": 9})
    there = {"a.slice": {"MemoryMin": "9", "DefaultMemoryMin": "2"}, "b.scope": {"MemoryMin": "3"}}
    assert missing_properties(wanted, there) == ()
    assert missing_properties(wanted, there | {"b.scope": {}}) == (SetProperties("b.scope", {"MemoryMin": 3}),)
    assert missing_properties(wanted, there | {"a.slice": {"MemoryMin": "9", "DefaultMemoryMin": "0"}}) == (default, DaemonReload())
    assert missing_properties(wanted, there | {"a.slice": {"MemoryMin": "9"}}) == ()  # a systemd that does not know it
    assert missing_properties(wanted, there | {"a.slice": {}}) == (default, DaemonReload(), rest)
    broken_off = there | {"a.slice": {"DefaultMemoryMin": "2"}}  # after the first step: whether there was a reload, nobody knows
    assert missing_properties(wanted, broken_off) == (DaemonReload(), rest)


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


def test_dropins_are_taken_back_with_their_folders(told: Told, tmp_path: Path) -> None:
    ours, shared = tmp_path / "a.slice.d", tmp_path / "b.slice.d"
    for folder in (ours, shared):
        folder.mkdir()
        (folder / "50-MemoryMin.conf").touch()
    (shared / "50-CPUQuota.conf").touch()
    for step in remove_dropins([ours / "50-MemoryMin.conf", shared / "50-MemoryMin.conf"]):
        step.run()
    assert not ours.exists()
    assert [path.name for path in shared.iterdir()] == ["50-CPUQuota.conf"]
    assert told() == ["daemon-reload"]


def test_with_nothing_to_take_back_there_is_no_reload() -> None:
    assert undo_steps((), None) == ()


def described(plan: Preparation, env: str | None = None) -> list[str]:
    return [step.describe() for step in prepare_steps(plan, {}, env)]


def test_earlyoom_is_restarted_only_when_its_file_changes() -> None:
    assert described(Preparation(earlyoom="new"), "new") == []
    assert described(Preparation(earlyoom="new"), "old") == [
        "write /var/lib/vllm-safe/earlyoom.env (root:root 0644)",
        "restart earlyoom.service if it runs",
    ]
    assert described(Preparation(earlyoom=None), "old")[0] == "remove /var/lib/vllm-safe/earlyoom.env"


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
    assert step.describe() == "write /run/vllm-safe/launch/x.json (root:vllm 0640), which refuses: what"


def test_the_order_is_limits_before_the_launch_file() -> None:
    steps = prepare_steps(Preparation(units={"vllm@x.service": {"MemoryMax": 1}}, launch=Launch("x")), {}, None)
    assert isinstance(steps[0], SetProperties)
    assert steps[-1].describe().startswith("write /run/vllm-safe/launch/")


def test_describing_names_the_file() -> None:
    assert RemoveDropin(Path("/run/x.conf")).describe() == "remove /run/x.conf"
