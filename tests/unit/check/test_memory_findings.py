"""Checks of memory and of what protects logins, each in the case that it exists for."""

from __future__ import annotations

from dataclasses import replace

from tests.builders.checked_machines import CONFIG, GOOD, HOST, SEEN
from vllm_safe.check.checks import check_machine
from vllm_safe.check.machine_facts import MachineFacts
from vllm_safe.check.memory_findings import check_protection, check_tunables
from vllm_safe.config.settings import Earlyoom
from vllm_safe.decide.limits import EACH_UNIT, decide_budget
from vllm_safe.tunables.tunable_facts import LRU_GEN


def levels(at: MachineFacts) -> dict[str, str]:
    return {finding.what: str(finding.level) for finding in check_machine(at)}


def test_a_systemd_without_a_share_for_each_unit_is_named() -> None:
    without = {unit: {name: value for name, value in values.items() if name != EACH_UNIT} for unit, values in SEEN.units.items()}
    found = check_protection(replace(GOOD, seen=replace(SEEN, units=without)))
    assert (found.level, found.what.rpartition(": ")[2]) == ("pass", "this systemd has no DefaultMemoryMin=")


def test_tunables_that_are_not_in_force_matter_only_beside_a_model_that_runs() -> None:
    idle = replace(GOOD, host=replace(HOST, tunables={LRU_GEN: "0x0000"}))
    runs = replace(idle, seen=replace(SEEN, units={**SEEN.units, "vllm@big.service": {"ActiveState": "active"}}))
    found = [check_tunables(at) for at in (GOOD, idle, runs, replace(runs, host=replace(HOST, tunables={LRU_GEN: "0x0007"})))]
    assert [finding and str(finding.level) for finding in found] == [None, "pass", "warn", "pass"]
    assert found[2]
    assert LRU_GEN in found[2].what


def test_earlyoom_left_to_the_admin_is_no_trouble() -> None:
    config = replace(CONFIG, earlyoom=Earlyoom(enabled=False))
    seen = replace(SEEN, earlyoom=("-m", "20"), admin_earlyoom="-m 20")
    assert "fail" not in levels(MachineFacts(config, HOST, decide_budget(config, HOST), seen)).values()
