"""What systemd says of the models, and what is read of their launch files. systemctl is a script that prints what a real one printed."""

from __future__ import annotations

from pathlib import Path

import pytest

from vllm_safe.contract import launch_file, state_file
from vllm_safe.contract.launch_file import Launch
from vllm_safe.contract.state_file import State
from vllm_safe.host import demand_facts
from vllm_safe.host.demand_facts import read_demand_facts
from vllm_safe.host.start_facts import Starts

SHOWN = """\
Id=vllm@one.service
ActiveState=active
SubState=running
Result=success
NRestarts=2
Job=
ExecMainStartTimestampMonotonic=100000000
ActiveEnterTimestampMonotonic=160500000

Id=vllm-safe-prepare@two.service
ActiveState=activating
SubState=start
Result=success
Job=214
ExecMainStartTimestampMonotonic=500000000
ActiveEnterTimestampMonotonic=0

Id=vllm@two.service
ActiveState=inactive
SubState=dead
Result=success
NRestarts=0
Job=213
ExecMainStartTimestampMonotonic=0
ActiveEnterTimestampMonotonic=0

Id=vllm-on-demand@two.service
ActiveState=inactive
SubState=dead
Result=success
NRestarts=0
Job=155
ExecMainStartTimestampMonotonic=0
ActiveEnterTimestampMonotonic=0
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "shown").write_text(SHOWN)
    fake = tmp_path / "systemctl"
    fake.write_text(f"#!/bin/sh\ncat {tmp_path}/shown\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(launch_file, "LAUNCH_FOLDER", tmp_path)
    monkeypatch.setattr(state_file, "STATE_FOLDER", tmp_path / "state")
    monkeypatch.setattr(demand_facts, "starts_file", lambda name: tmp_path / f"{name}.starts")
    (tmp_path / "state").mkdir()
    return tmp_path


def test_units_are_told_apart(folder: Path) -> None:
    assert folder.exists()
    facts = read_demand_facts()
    assert (list(facts.models), list(facts.preparing), list(facts.proxies)) == (["one", "two"], ["two"], ["two"])
    one = facts.model("one")
    assert (one.active, one.job, one.begun, one.ready, one.restarts, one.has_processes) == ("active", 0, 100.0, 160.5, 2, True)
    assert (facts.model("two").job, facts.proxies["two"].job, facts.model("three").active) == (213, 155, "inactive")


def test_launch_files_and_the_last_requests_belong_to_them(folder: Path) -> None:
    (folder / "one.json").write_text(Launch("one", request=7).to_json())
    (folder / "one.starts").write_text(Starts(2, (1.0,)).to_json())
    state_file.write_state(State("one", "run", 7, 1000.0, 0.0, "ready", 100.0, used=990.0))
    facts = read_demand_facts()
    assert set(facts.launches) == {"one"}
    found = facts.launches["one"]
    assert (found.launch.request, found.restarts) == (7, 2)
    assert abs(found.written - facts.now) < 60
    assert facts.used == {"one": 990.0}


def test_a_damaged_launch_file_is_none(folder: Path) -> None:
    (folder / "one.json").write_text("{")
    assert read_demand_facts().launches == {}


def test_without_systemd_there_is_nothing(folder: Path) -> None:
    (folder / "systemctl").write_text("#!/bin/sh\nexit 1\n")
    assert read_demand_facts().models == {}
