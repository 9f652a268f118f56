"""Each line of the checklist, in the case that it exists for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from tests.builders.situations import situation_of
from vllm_safe.check import checks
from vllm_safe.check.check_facts import Inspection, MeasuredDisk, Served
from vllm_safe.common.errors import Failure
from vllm_safe.common.key_file import Key
from vllm_safe.common.sizes import GIB
from vllm_safe.config.power_types import EVERY_CARD, PowerCap
from vllm_safe.config.settings import Config, Earlyoom, GatewaySection, GpuSection, Model
from vllm_safe.contract.gateway_file import GatewayFile, GatewayModel
from vllm_safe.decide.limits import EACH_UNIT, decide_budget
from vllm_safe.decide.preparation import decide_preparation
from vllm_safe.decide.start_checks import Situation
from vllm_safe.driver.card_facts import NvmlCard
from vllm_safe.driver.driver_facts import Driver, Nvml
from vllm_safe.earlyoom.earlyoom_arguments import decide_earlyoom_arguments
from vllm_safe.host.block_devices import BlockDevice
from vllm_safe.host.disk_facts import Disk
from vllm_safe.host.disk_pace import DiskPace
from vllm_safe.host.host_facts import Host, Mount, SwapArea
from vllm_safe.host.rig_facts import HardwareFacts
from vllm_safe.host.start_facts import StartFacts
from vllm_safe.models.model_files import ModelFiles
from vllm_safe.power.power_facts import PowerCard, PowerReading
from vllm_safe.tunables.tunable_facts import LRU_GEN

MODEL = Model(model="org/name", args=MappingProxyType({"tensor-parallel-size": 4, "pipeline-parallel-size": 2}))
CONFIG = Config(models=MappingProxyType({"big": MODEL}))
SWAP = SwapArea("/swapfile", "file", 128 * GIB - 4096, 0)
HOST = Host(memory=16 * GIB, gpus=8, swaps=(SWAP,), cgroup2=True, controllers=frozenset({"memory"}), pressure=True)
EARLYOOM = {"LoadState": "loaded", "ActiveState": "active"}
KEPT = {unit: {name: str(value) for name, value in values.items()} for unit, values in decide_budget(CONFIG, HOST).units.items()}
SEEN = Inspection(units={"earlyoom.service": EARLYOOM, **KEPT}, earlyoom=decide_earlyoom_arguments(CONFIG))
OLD_DRIVER = Driver(nvml=Nvml(0, driver="550.163.01", cuda=(12, 4), cards=(NvmlCard("H200", (9, 0)),)))


def disks(**schedulers: str) -> dict[str, Disk]:
    return {name: Disk(name, rotational=True, scheduler=scheduler) for name, scheduler in schedulers.items()}


GOOD = checks.MachineFacts(CONFIG, HOST, decide_budget(CONFIG, HOST), SEEN)


def levels(at: checks.MachineFacts) -> dict[str, str]:
    return {finding.what: str(finding.level) for finding in checks.check_machine(at)}


def test_a_systemd_without_a_share_for_each_unit_is_named() -> None:
    without = {unit: {name: value for name, value in values.items() if name != EACH_UNIT} for unit, values in SEEN.units.items()}
    found = checks.check_protection(replace(GOOD, seen=replace(SEEN, units=without)))
    assert (found.level, found.what.rpartition(": ")[2]) == ("pass", "this systemd has no DefaultMemoryMin=")


def test_a_good_machine_passes_every_line() -> None:
    found = checks.check_machine(GOOD)
    assert {finding.level for finding in found} == {"pass"}
    assert all(not finding.do_next for finding in found)


BAD_KEY, HIDDEN = Key(Path("/k"), problem="/k does not exist", way_out="Create a key"), Key(Path("/k"), problem="no", hidden=True)
RUNS = {"vllm-gateway.service": {"ActiveState": "active"}}


@pytest.mark.parametrize(
    ("host", "seen", "level", "says"),
    [
        ("127.0.0.1", {"units": RUNS}, "pass", "the gateway listens on 127.0.0.1:8080 for all models"),
        ("127.0.0.1", {"aiohttp": False}, "fail", "python3-aiohttp is not installed"),
        ("127.0.0.1", {}, "warn", "the gateway is enabled, but not running"),
        ("192.0.2.1", {"units": RUNS}, "warn", "the gateway listens on 192.0.2.1 without a key"),
        ("192.0.2.1", {"units": RUNS, "gateway_key": Key(Path("/k"), "secret")}, "pass", "192.0.2.1:8080"),
        ("127.0.0.1", {"gateway_key": BAD_KEY}, "fail", "/k does not exist"),
        ("127.0.0.1", {"gateway_key": HIDDEN}, "warn", "can only be checked by root"),
    ],
)
def test_the_gateway_can_run_and_does(host: str, seen: dict[str, Any], level: str, says: str) -> None:
    config = replace(CONFIG, gateway=GatewaySection(enabled=True, host=host))
    found = checks.check_gateway(replace(GOOD, config=config, seen=Inspection(**seen)))
    assert found is not None
    assert (str(found.level), says in found.what) == (level, True)
    assert "secret" not in found.what
    assert checks.check_gateway(GOOD) is None


def test_models_that_make_room_for_each_other_are_listed() -> None:
    models = tuple(
        GatewayModel(name, (name,), "", ("", 1), on_demand=name != "c", memory=size) for name, size in (("a", 6), ("b", 6), ("c", 2))
    )
    seen = replace(SEEN, gateway=GatewayFile(models=models, memory=8))
    assert checks.check_room(GOOD) is None
    told = "models on demand: these pairs do not fit together, so one makes room for the other: a and b"
    assert checks.check_room(replace(GOOD, seen=seen)).what == told  # type: ignore[union-attr]
    roomy = replace(SEEN, gateway=GatewayFile(models=models, memory=12))
    assert checks.check_room(replace(GOOD, seen=roomy)).what == "models on demand: any two models fit together"  # type: ignore[union-attr]


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
    found = checks.check_demand_socket(at, Inspection(units={"vllm-on-demand@big.socket": {"ActiveState": active}}))
    assert found is not None
    assert str(found.level) == level
    assert says in found.what
    assert checks.check_demand_socket(situation_of(CONFIG, HOST, "big", StartFacts()), SEEN) is None


UNIFIED = Mount("/sys/fs/cgroup", "cgroup2", "cgroup2", ("rw",))


@pytest.mark.parametrize(
    ("changes", "level", "words"),
    [
        ({"host": replace(HOST, cgroup2=False)}, "fail", "cgroup v2"),
        ({"host": replace(HOST, pressure=False)}, "warn", "pressure stall information"),
        ({"host": replace(HOST, mounts=(UNIFIED,))}, "warn", "memory_recursiveprot"),
        ({"host": replace(HOST, swaps=())}, "warn", "asks for 128 GiB of swap"),
        ({"swap_refused": Failure("no room", hint="make room")}, "fail", "no room"),
        ({"seen": replace(SEEN, units={"earlyoom.service": EARLYOOM})}, "warn", "system.slice"),
        ({"seen": replace(SEEN, units={**SEEN.units, "user.slice": {"MemoryMin": "1"}})}, "warn", "for user.slice"),
        ({"seen": replace(SEEN, units=KEPT)}, "warn", "earlyoom is not installed"),
        ({"seen": replace(SEEN, units=KEPT | {"earlyoom.service": EARLYOOM | {"ActiveState": "failed"}})}, "fail", "is not running"),
        ({"seen": replace(SEEN, earlyoom=("-r", "3600"))}, "fail", "arguments that differ"),
        ({"seen": replace(SEEN, admin_earlyoom="-m 10")}, "warn", "overridden"),
        ({"seen": replace(SEEN, overcommit=2)}, "fail", "overcommit"),
        ({"seen": replace(SEEN, disks=disks(sda="mq-deadline", sdb="none"))}, "warn", "disk sdb uses the I/O scheduler none"),
        ({"seen": replace(SEEN, compiler=False)}, "warn", "no C++ compiler"),
        ({"seen": replace(SEEN, headers=False)}, "warn", "Python.h"),
        ({"seen": replace(SEEN, driver=Driver())}, "warn", "no NVIDIA driver is installed"),
        ({"seen": replace(SEEN, driver=OLD_DRIVER, cuda=(13, 0))}, "fail", "supports CUDA 12.4"),
    ],
)
def test_each_trouble_is_one_line_with_a_way_out(changes: dict[str, Any], level: str, words: str) -> None:
    found = [finding for finding in checks.check_machine(replace(GOOD, **changes)) if finding.level != "pass"]
    assert [str(finding.level) for finding in found] == [level]
    assert words in found[0].what
    assert found[0].do_next


def test_tunables_that_are_not_in_force_matter_only_beside_a_model_that_runs() -> None:
    idle = replace(GOOD, host=replace(HOST, tunables={LRU_GEN: "0x0000"}))
    runs = replace(idle, seen=replace(SEEN, units={**SEEN.units, "vllm@big.service": {"ActiveState": "active"}}))
    found = [checks.check_tunables(at) for at in (GOOD, idle, runs, replace(runs, host=replace(HOST, tunables={LRU_GEN: "0x0007"})))]
    assert [finding and str(finding.level) for finding in found] == [None, "pass", "warn", "pass"]
    assert found[2]
    assert LRU_GEN in found[2].what


def test_earlyoom_left_to_the_admin_is_no_trouble() -> None:
    config = replace(CONFIG, earlyoom=Earlyoom(enabled=False))
    seen = replace(SEEN, earlyoom=("-m", "20"), admin_earlyoom="-m 20")
    assert "fail" not in levels(checks.MachineFacts(config, HOST, decide_budget(config, HOST), seen)).values()


def test_hard_disks_that_know_classes_are_well_and_none_is_no_trouble() -> None:
    seen = replace(SEEN, disks=disks(sda="mq-deadline", sdb="bfq"))
    finding = checks.check_hard_disks(checks.MachineFacts(CONFIG, HOST, decide_budget(CONFIG, HOST), seen))
    assert finding is not None
    assert (str(finding.level), "sda uses mq-deadline, sdb uses bfq" in finding.what) == ("pass", True)
    assert checks.check_hard_disks(checks.MachineFacts(CONFIG, HOST, decide_budget(CONFIG, HOST), SEEN)) is None


def test_other_servers_need_no_compiler() -> None:
    config = Config(models=MappingProxyType({"other": Model(command=("server",))}))
    assert checks.check_compiler(checks.MachineFacts(config, HOST, decide_budget(config, HOST), replace(SEEN, compiler=False))) is None


def test_the_findings_on_the_rig_follow_those_on_the_machine() -> None:
    found = checks.check_machine(replace(GOOD, seen=replace(SEEN, rig=HardwareFacts(threads=4, cores=4))))
    assert found[-2].what == "processor: 4 cores, no hyper-threads"


def situation(config: Config = CONFIG, host: Host = HOST, name: str = "big") -> Situation:
    files = ModelFiles(Path("/m"), present=True)
    return situation_of(config, host, name, StartFacts(server=True, model=files, swap_file="/swapfile"))


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
    finding = checks.check_answer(situation(), replace(SEEN, served={"big": served}))
    assert (str(finding.level), words in finding.what) == (level, True)


def test_a_failed_unit_is_a_failure_and_a_stopped_one_is_not() -> None:
    failed = checks.check_answer(situation(), replace(SEEN, units={"vllm@big.service": {"ActiveState": "failed"}}))
    assert (str(failed.level), failed.do_next) == ("fail", "systemctl status vllm@big.service")
    assert checks.check_answer(situation(), SEEN).level == "pass"


@pytest.mark.parametrize(("state", "asked"), [("inactive", True), ("failed", True), ("active", False), ("activating", False)])
def test_a_running_model_holds_its_port_itself(state: str, asked: bool) -> None:  # noqa: FBT001 -- a row of the table
    host = replace(HOST, listening=frozenset({("127.0.0.1", 8000)}))
    found = checks.check_running_model(situation(host=host), replace(SEEN, units={"vllm@big.service": {"ActiveState": state}}))
    assert any("port 8000 is already in use" in finding.what for finding in found) == asked


def test_a_key_that_only_root_can_see_is_no_failure_of_check_but_one_of_a_start() -> None:
    key = Key(Path("/root/key"), problem="may not be read", hidden=True)
    at = replace(situation(), facts=replace(situation().facts, key=key))
    found = [finding for finding in checks.check_running_model(at, SEEN) if "key" in finding.what]
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
        ("mode=1777,size=64M", 8, "fail", "of 64.0 MiB (64M); what is in it counts as RAM of the model; vLLM needs 240 MiB in"),
        ("mode=1777,size=64M", 1, "pass", "64.0 MiB"),  # one process alone sends nothing to others
        ("mode=1777", 8, "", ""),
    ],
)
def test_the_shared_memory_of_a_model(options: str, split: int, level: str, words: str) -> None:
    model = replace(MODEL, args=MappingProxyType({"tensor-parallel-size": split}))
    at = situation(replace(CONFIG, models=MappingProxyType({"big": model})))
    units = {"vllm@big.service": {"TemporaryFileSystem": f"/var:ro {SHM}:{options}"}}
    found = checks.check_shared_memory(replace(at, facts=replace(at.facts, units=units)))
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
    found = checks.check_model_disk(at, replace(SEEN, disks={disk.name: disk}, swap_disks=(disk,) if swap else ()))
    assert found
    assert (str(found.level), words in found.what) == (level, True)


def test_the_pace_of_a_disk() -> None:
    at, seen = situation(host=replace(HOST, mounts=(MODELS,))), replace(SEEN, disks={"sda": Disk("sda", rotational=True)})
    found = checks.check_pace(at, seen, MeasuredDisk("model-1.safetensors", DiskPace(600 << 20, 4.0), 77 * GIB))
    assert found.what == (
        "sda, a hard disk: 150 MiB a second in sequence (600 MiB of model-1.safetensors); to read big once, 77.0 GiB, takes 8 min 45 s"
    )
    assert checks.check_pace(at, seen, MeasuredDisk("/swapfile", DiskPace(600 << 20, 4.0))).what.endswith("(600 MiB of /swapfile)")
    for nothing in (None, MeasuredDisk("config.json", DiskPace(700, 0.001), 700)):
        assert "was not measured" in checks.check_pace(at, seen, nothing).what


CARD = PowerCard(0, "GPU-a", "0000:01:00.0", "RTX 3060", limit=170000, default=170000, least=100000, most=200000)


@pytest.mark.parametrize(
    ("cap", "reading", "runs", "level", "words"),
    [
        (75, PowerReading((CARD,)), False, "pass", "power limits while a model runs: 127.5 W of 170 W for card 0 (RTX 3060)"),
        (75, PowerReading((CARD,)), True, "warn", "a model is running, but the power limit of card 0 (RTX 3060) differs from config.yaml"),
        (100, PowerReading((CARD,)), True, "pass", "170 W of 170 W"),
        (30, PowerReading((CARD,)), False, "fail", "which is 51 W, is out of range; expected 100 W to 200 W"),
        (75, PowerReading(problem="no driver", hint="get one"), False, "fail", "the power limits of the cards cannot be read: no driver"),
    ],
)
def test_the_power_limits_are_those_that_the_cards_accept_and_have(
    cap: int, reading: PowerReading, *, runs: bool, level: str, words: str
) -> None:
    config = replace(CONFIG, gpu=GpuSection({EVERY_CARD: PowerCap(cap, is_percent=True)}))
    units = {**SEEN.units, "vllm@big.service": {"ActiveState": "active"}} if runs else SEEN.units
    found = checks.check_power_limits(replace(GOOD, config=config, seen=replace(SEEN, units=units, power=reading)))
    assert found is not None
    assert (str(found.level), words in found.what, bool(found.do_next)) == (level, True, level != "pass")


def test_without_a_power_limit_there_is_no_line() -> None:
    assert checks.check_power_limits(GOOD) is None
