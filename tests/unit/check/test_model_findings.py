"""Each line of the checklist of a model, in the case that it exists for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import pytest

from tests.builders.checked_machines import CONFIG, HOST, MODEL, SEEN, situation
from tests.builders.situations import situation_of
from vllm_safe.check.check_facts import Inspection, MeasuredDisk, Served
from vllm_safe.check.model_findings import (
    check_answer,
    check_demand_socket,
    check_model_disk,
    check_pace,
    check_running_model,
    check_shared_memory,
)
from vllm_safe.common.key_file import Key
from vllm_safe.common.sizes import GIB
from vllm_safe.decide.preparation import decide_preparation
from vllm_safe.host.block_devices import BlockDevice
from vllm_safe.host.disk_facts import Disk
from vllm_safe.host.disk_pace import DiskPace
from vllm_safe.host.host_facts import Mount
from vllm_safe.host.start_facts import StartFacts


@pytest.mark.parametrize(
    ("active", "listening", "level", "says"),
    [
        ("active", frozenset({("127.0.0.1", 8000)}), "pass", "a request to 127.0.0.1:8000 starts it"),
        ("inactive", frozenset(), "warn", "nothing listens for its requests"),
        ("inactive", frozenset({("127.0.0.1", 8000)}), "fail", "port 8000 is already in use"),
    ],
)
def test_a_model_on_demand_needs_its_socket(active: str, listening: frozenset[tuple[str, int]], level: str, says: str) -> None:
    config = replace(CONFIG, models=MappingProxyType({"big": replace(MODEL, on_demand=True)}))
    at = situation_of(config, replace(HOST, listening=listening), "big", StartFacts())
    found = check_demand_socket(at, Inspection(units={"vllm-on-demand@big.socket": {"ActiveState": active}}))
    assert found is not None
    assert str(found.level) == level
    assert says in found.what
    assert check_demand_socket(situation_of(CONFIG, HOST, "big", StartFacts()), SEEN) is None


@pytest.mark.parametrize(
    ("served", "level", "words"),
    [
        (Served(("big",)), "pass", "serves big"),
        (Served(("other",)), "fail", "lists other"),
        (Served(), "fail", "lists nothing"),
        (Served(problem="it answers 500"), "fail", "500"),
    ],
)
def test_the_model_list_of_a_running_model(served: Served, level: str, words: str) -> None:
    finding = check_answer(situation(), replace(SEEN, served={"big": served}))
    assert (str(finding.level), words in finding.what) == (level, True)


def test_a_failed_unit_is_a_failure_and_a_stopped_one_is_not() -> None:
    failed = check_answer(situation(), replace(SEEN, units={"vllm@big.service": {"ActiveState": "failed"}}))
    assert (str(failed.level), failed.do_next) == ("fail", "systemctl status vllm@big.service")
    assert check_answer(situation(), SEEN).level == "pass"


@pytest.mark.parametrize(("state", "asked"), [("inactive", True), ("failed", True), ("active", False), ("activating", False)])
def test_a_running_model_holds_its_port_itself(state: str, asked: bool) -> None:  # noqa: FBT001 -- a row of the table
    host = replace(HOST, listening=frozenset({("127.0.0.1", 8000)}))
    found = check_running_model(situation(host=host), replace(SEEN, units={"vllm@big.service": {"ActiveState": state}}))
    assert any("port 8000 is already in use" in finding.what for finding in found) == asked


def test_a_key_that_only_root_can_see_is_no_failure_of_check_but_one_of_a_start() -> None:
    key = Key(Path("/root/key"), problem="may not be read", hidden=True)
    at = replace(situation(), facts=replace(situation().facts, key=key))
    found = [finding for finding in check_running_model(at, SEEN) if "key" in finding.what]
    assert [str(finding.level) for finding in found] == ["warn"]
    plan = decide_preparation(at)
    assert plan.launch is not None
    assert plan.launch.refusal == "may not be read"


SHM = "/dev/" + "shm"  # of the unit, which ruff takes for the machine's


@pytest.mark.parametrize(
    ("options", "split", "level", "words"),
    [
        ("mode=1777,nosuid,nodev,size=50%", 8, "pass", "of 8.0 GiB (50%)"),
        ("size=1G,mode=1777", 8, "pass", "of 1.0 GiB (1G)"),
        ("mode=1777,size=64M", 8, "fail", "of 64.0 MiB (64M); its content counts as RAM of the model; vLLM needs 240 MiB in"),
        ("mode=1777,size=64M", 1, "pass", "64.0 MiB"),  # one process alone sends nothing to others
        ("mode=1777", 8, "", ""),
    ],
)
def test_the_shared_memory_of_a_model(options: str, split: int, level: str, words: str) -> None:
    model = replace(MODEL, args=MappingProxyType({"tensor-parallel-size": split}))
    at = situation(replace(CONFIG, models=MappingProxyType({"big": model})))
    units = {"vllm@big.service": {"TemporaryFileSystem": f"/var:ro {SHM}:{options}"}}
    found = check_shared_memory(replace(at, facts=replace(at.facts, units=units)))
    assert (str(found.level) if found else "", words in found.what if found else True) == (level, True)


MODELS = Mount("/m", "ext4", "/dev/sda1", ("rw",), (BlockDevice("sda"),))


@pytest.mark.parametrize(
    ("disk", "swap", "level", "words"),
    [
        (Disk("sda", rotational=True), True, "warn", "big is read from sda, a hard disk, to which the machine also swaps"),
        (Disk("sda", rotational=True), False, "pass", "big is read from sda, a hard disk"),
        (Disk("sda"), True, "pass", "big is read from sda, an SSD"),
        (Disk("sdb"), False, "pass", "the disk that has its files is not known"),
    ],
)
def test_the_disk_of_a_model(disk: Disk, swap: bool, level: str, words: str) -> None:  # noqa: FBT001 -- a row of the table
    at = situation(host=replace(HOST, mounts=(MODELS,)))
    found = check_model_disk(at, replace(SEEN, disks={disk.name: disk}, swap_disks=(disk,) if swap else ()))
    assert found
    assert (str(found.level), words in found.what) == (level, True)


def test_the_pace_of_a_disk() -> None:
    at, seen = situation(host=replace(HOST, mounts=(MODELS,))), replace(SEEN, disks={"sda": Disk("sda", rotational=True)})
    found = check_pace(at, seen, MeasuredDisk("model-1.safetensors", DiskPace(600 << 20, 4.0), 77 * GIB))
    assert found.what == (
        "sda, a hard disk: 150 MiB a second in sequence (600 MiB of model-1.safetensors); to read big once, 77.0 GiB, takes 8 min 45 s"
    )
    assert check_pace(at, seen, MeasuredDisk("/swapfile", DiskPace(600 << 20, 4.0))).what.endswith("(600 MiB of /swapfile)")
    for nothing in (None, MeasuredDisk("config.json", DiskPace(700, 0.001), 700)):
        assert "was not measured" in check_pace(at, seen, nothing).what
