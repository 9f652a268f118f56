"""Checks of disks, compiler and GPUs, each in the case that it exists for."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType

import pytest

from tests.builders.checked_machines import CONFIG, GOOD, HOST, SEEN, disks
from vllm_safe.check.hardware_findings import check_compiler, check_hard_disks, check_power_limits
from vllm_safe.check.machine_facts import MachineFacts
from vllm_safe.config.power_types import EVERY_CARD, PowerCap
from vllm_safe.config.settings import Config, GpuSection, Model
from vllm_safe.decide.limits import decide_budget
from vllm_safe.power.power_facts import PowerCard, PowerReading


def test_hard_disks_that_know_classes_are_well_and_none_is_no_trouble() -> None:
    seen = replace(SEEN, disks=disks(sda="mq-deadline", sdb="bfq"))
    finding = check_hard_disks(MachineFacts(CONFIG, HOST, decide_budget(CONFIG, HOST), seen))
    assert finding is not None
    assert (str(finding.level), "sda uses mq-deadline, sdb uses bfq" in finding.what) == ("pass", True)
    assert check_hard_disks(MachineFacts(CONFIG, HOST, decide_budget(CONFIG, HOST), SEEN)) is None


def test_other_servers_need_no_compiler() -> None:
    config = Config(models=MappingProxyType({"other": Model(command=("server",))}))
    assert check_compiler(MachineFacts(config, HOST, decide_budget(config, HOST), replace(SEEN, compiler=False))) is None


CARD = PowerCard(0, "GPU-a", "0000:01:00.0", "RTX 3060", limit=170000, default=170000, least=100000, most=200000)


@pytest.mark.parametrize(
    ("cap", "reading", "runs", "level", "words"),
    [
        (75, PowerReading((CARD,)), False, "pass", "power limits while a model runs: 127.5 W of 170 W for GPU 0 (RTX 3060)"),
        (75, PowerReading((CARD,)), True, "warn", "a model is running, but the power limit of GPU 0 (RTX 3060) differs from config.yaml"),
        (100, PowerReading((CARD,)), True, "pass", "170 W of 170 W"),
        (30, PowerReading((CARD,)), False, "fail", "which is 51 W, is out of range; expected 100 W to 200 W"),
        (75, PowerReading(problem="no driver", hint="get one"), False, "fail", "the power limits of the GPUs cannot be read: no driver"),
    ],
)
def test_the_power_limits_are_those_that_the_cards_accept_and_have(
    cap: int, reading: PowerReading, *, runs: bool, level: str, words: str
) -> None:
    config = replace(CONFIG, gpu=GpuSection({EVERY_CARD: PowerCap(cap, is_percent=True)}))
    units = {**SEEN.units, "vllm@big.service": {"ActiveState": "active"}} if runs else SEEN.units
    found = check_power_limits(replace(GOOD, config=config, seen=replace(SEEN, units=units, power=reading)))
    assert found is not None
    assert (str(found.level), words in found.what, bool(found.do_next)) == (level, True, level != "pass")


def test_without_a_power_limit_there_is_no_line() -> None:
    assert check_power_limits(GOOD) is None
