"""Tests of reading the status of models, from a tree of files like the kernel's."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from vllm_safe.contract.recorded_run import Gpu
from vllm_safe.contract.state_file import State
from vllm_safe.status import status_facts
from vllm_safe.status.status_facts import read_machine_memory, read_model_status, running_models
from vllm_safe.status.top_screen import MachineMemory

GROUP = "vllm.slice/vllm@x.service"


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    group = tmp_path / GROUP
    group.mkdir(parents=True)
    files = {
        "memory.stat": "anon 1000\nfile 70\nshmem 24\n", "memory.max": "4096\n", "memory.swap.current": "12\n", "memory.swap.max": "max\n",
        "memory.pressure": "some avg10=9.00 avg60=0 avg300=0 total=1\nfull avg10=42.50 avg60=0.00 avg300=0.00 total=5\n",
    }  # fmt: skip
    for name, content in files.items():
        (group / name).write_text(content)
    for part, share in (("system.slice", "1.00"), ("user.slice", "3.00")):
        (tmp_path / part).mkdir()
        (tmp_path / part / "memory.pressure").write_text(f"full avg10={share} avg60=0.00 avg300=0.00 total=5\n")
    (tmp_path / "states").mkdir()
    unit = {
        "ActiveState": "active",
        "SubState": "running",
        "MainPID": "7",
        "ControlGroup": f"/{GROUP}",
        "StateChangeTimestampMonotonic": "0",
    }
    monkeypatch.setattr(status_facts, "show_properties", lambda units, _: dict.fromkeys(units, unit))
    return tmp_path


def see(tree: Path) -> status_facts.ModelStatus:
    return read_model_status(["x"], root=tree, states=tree / "states", guard=tree / "guard", cards=tree / "cards")[0]


def put_state(tree: Path, **fields: object) -> None:
    state = State("x", "r", 7, time.time(), 1.0, "ready", 2.0)._asdict() | fields
    (tree / "states/x.json").write_text(json.dumps(state))


def test_a_preparation_that_runs_and_what_it_waits_for(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = f"{(time.monotonic() - 5) * 1e6:.0f}"
    units = {
        "vllm@x.service": {"ActiveState": "failed", "StateChangeTimestampMonotonic": "1"},
        "vllm-safe-prepare@x.service": {
            "ActiveState": "activating",
            "StatusText": "waiting for y",
            "StateChangeTimestampMonotonic": begun,
        },
    }
    monkeypatch.setattr(status_facts, "show_properties", lambda *_: units)
    seen = see(tree)
    assert (seen.preparing, seen.demand.waits_for) == (True, "waiting for y")
    assert seen.changed == pytest.approx(time.time() - 5, abs=2)


def test_the_kernels_figures(tree: Path) -> None:
    seen = see(tree)
    assert (seen.memory, seen.memory_max, seen.swap, seen.swap_max) == (1024, 4096, 12, None)
    assert (seen.memory_pressure, seen.os_memory_pressure, seen.io_pressure) == (0.425, 0.03, None)


def test_a_state_counts_only_from_the_main_process_that_runs(tree: Path) -> None:
    put_state(tree)
    found = see(tree).state
    assert found is not None
    assert found.phase == "ready"
    put_state(tree, pid=8)
    assert see(tree).state is None
    put_state(tree, name="y")
    assert see(tree).state is None


def test_what_user_vllm_plants_stops_nothing(tree: Path) -> None:
    place = tree / "states/x.json"
    os.mkfifo(place)
    assert see(tree).state is None
    place.unlink()
    place.symlink_to("/dev/zero")
    assert see(tree).state is None


def test_the_recorders_last_reading_of_the_cards_while_it_is_fresh(tree: Path) -> None:
    put_state(tree)
    assert see(tree).gpus == ()
    (tree / "cards").mkdir()
    told = tree / "cards/x:cards"
    told.write_text("[[9, 12, 0.97, 168, 71, 1, 0, 0, 1, 3], [0, 0, 0]]")
    expected = (Gpu(9, 12, 0.97, 168, 71, 1, 0, 0, 1, 3), Gpu(0, 0, 0))
    assert see(tree).gpus == expected
    put_state(tree, pid=8)
    assert see(tree).gpus == (), "of a model that does not run"
    put_state(tree)
    os.utime(told, (time.time() - 60, time.time() - 60))
    assert see(tree).gpus == (), "of a recorder that does not run"
    told.write_text("nonsense")
    assert see(tree).gpus == ()


def test_what_the_guard_did(tree: Path) -> None:
    (tree / "guard").mkdir()
    (tree / "guard/x.jsonl").write_text('{"time": 5, "act": "freeze", "text": "t", "readings": {}}\nnonsense\n{"act": "no time"}\n')
    assert [tuple(act) for act in see(tree).acts] == [(5, "freeze", "t")]


def test_units_that_run_are_found_whatever_the_configuration_says(tree: Path) -> None:
    (tree / "vllm.slice/other.service").mkdir()
    assert running_models(tree) == ("x",)
    assert running_models(tree / "nowhere") == ()


def test_the_machines_memory(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 4 kB\nMemAvailable: 3 kB\nSwapTotal: 2 kB\nSwapFree: 1 kB\nHugePages_Total: 7\n")
    assert read_machine_memory(str(tmp_path / "meminfo")) == MachineMemory(4096, 3072, 2048, 1024)
    assert read_machine_memory(str(tmp_path / "none")) == MachineMemory()
