"""The decided start: what is launched, what is refused, and what is set in either case."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.builders.situations import GOOD, changed, findings_of, with_facts, with_host, with_model
from vllm_safe.common.findings import Level
from vllm_safe.common.kernfs import MODELS_SLICE
from vllm_safe.common.key_file import Key
from vllm_safe.common.sizes import Amount
from vllm_safe.config.settings import Config, Model, Protect
from vllm_safe.contract.launch_file import Launch
from vllm_safe.decide.limits import unit_of
from vllm_safe.decide.preparation import decide_preparation, decide_protection_of_all
from vllm_safe.decide.restarts import PAUSES
from vllm_safe.decide.start_checks import Situation, find_start_problems
from vllm_safe.engine.engine_facts import EngineFacts, Installed
from vllm_safe.host.demand_facts import DemandFacts, LaunchFacts, UnitFacts
from vllm_safe.host.start_facts import StartFacts, Starts
from vllm_safe.models.model_files import ModelFiles


def test_what_a_drop_in_sets_in_vain_is_said() -> None:
    at = with_facts(environment={"A": "1", "HF_TOKEN": "hf_x"}, units={"vllm@x.service": {"EnvironmentFiles": "/x (ignore_errors=no)"}})
    unheard, secret = findings_of(Level.WARN, at)
    assert unheard.what == "EnvironmentFile= of vllm@x.service has no effect on the server"
    assert "models.x.env" in unheard.do_next
    assert secret.what.startswith("Environment=HF_TOKEN of vllm@x.service has no effect: it is a secret")
    assert "hub_token_file" in secret.do_next
    launch = decide_preparation(at).launch
    assert launch is not None
    assert launch.env is not None
    assert (launch.env["A"], "HF_TOKEN" in launch.env) == ("1", False)
    assert any("EnvironmentFile=" in line for line in launch.summary)


def test_a_good_start_passes_everything_and_is_launched() -> None:
    assert {finding.level for finding in find_start_problems(GOOD)} == {Level.PASS}
    plan = decide_preparation(GOOD)
    assert plan.launch is not None
    assert plan.launch.refusal is None
    assert set(plan.units) == {"vllm@x.service", MODELS_SLICE, "system.slice", "user.slice", "init.scope"}
    assert plan.units["vllm@x.service"]["MemoryMax"] <= plan.units[MODELS_SLICE]["MemoryMax"]


ASKED = DemandFacts(models={"x": UnitFacts(job=20)}, proxies={"x": UnitFacts(job=10)})
FAILED = LaunchFacts(Launch("x", request=7))


def on_demand(demand: DemandFacts, at: Situation = GOOD) -> Situation:
    config = Config(models={"x": Model(model="a/b", on_demand=True, idle_timeout=600.0)})
    return replace(changed(at, config=config), demand=demand)


def test_the_server_of_a_model_on_demand_listens_elsewhere() -> None:
    launch = decide_preparation(on_demand(ASKED)).launch
    assert launch is not None
    assert (launch.serve_args or {})["port"] == 18000
    assert launch.health == "http://127.0.0.1:18000/health"
    taken = changed(GOOD, host=replace(GOOD.host, listening=frozenset({("127.0.0.1", 8000)})))
    assert decide_preparation(on_demand(ASKED, taken)).launch.refusal is None  # type: ignore[union-attr]


def test_a_request_starts_it_for_a_time_and_a_person_for_good() -> None:
    asked, by_hand = (decide_preparation(on_demand(demand)).launch for demand in (ASKED, DemandFacts()))
    assert asked is not None
    assert by_hand is not None
    assert (asked.request, asked.idle_timeout, by_hand.request) == (10, 600.0, 0)


def test_of_a_model_that_is_up_only_the_limits_are_set() -> None:
    plan = decide_preparation(on_demand(DemandFacts(models={"x": UnitFacts("active", "running")})))
    assert (plan.launch, set(plan.units) > {"vllm@x.service"}) == (None, True)


def test_a_request_for_what_has_failed_counts_as_a_restart_unless_it_is_refused() -> None:
    failed = replace(ASKED, models={"x": UnitFacts("failed", "failed", "exit-code", job=20)}, launches={"x": FAILED})
    plan = decide_preparation(on_demand(failed))
    assert (len(plan.starts.at), plan.launch.restart) == (1, 1)  # type: ignore[union-attr]
    lost = changed(GOOD, facts=replace(GOOD.facts, server=False, starts=Starts(0, (9_000.0,))))
    assert decide_preparation(on_demand(failed, lost)).starts == Starts(0, (9_000.0,))
    waits = replace(failed, models={"x": UnitFacts("activating", "auto-restart", "exit-code", job=20)})
    assert decide_preparation(on_demand(waits)).starts == GOOD.facts.starts


NEVER = {
    "cgroup v1": (with_host(cgroup2=False), "cgroup"),
    "nothing left": (changed(GOOD, config=replace(GOOD.config, protect=Protect(system=Amount(99, is_percent=True)))), "RAM"),
    "swap off": (with_host(swaps=()), "/swapfile is not on"),
    "no engine": (with_facts(server=False), "vllm-safe install"),
    "no program": (changed(with_model(model=None, command=("/bin/nothing",)), facts=StartFacts(swap_file="/swapfile")), "/bin/nothing"),
    "no model": (with_facts(model=ModelFiles(Path("/m/a/b"), "a/b")), "vllm-safe fetch x"),
    "no folder": (with_facts(model=ModelFiles(Path("/data/b"))), "models.x.model"),
    "half a model": (with_facts(model=ModelFiles(Path("/m/a/b"), "a/b", present=True, problem="2 files are missing")), "2 files"),
    "key": (with_facts(key=Key(Path("/k"), problem="/k is bad", way_out="chmod 600 /k")), "chmod 600 /k"),
    "port taken": (with_host(listening=frozenset({("127.0.0.1", 8000)})), "port 8000 is already in use"),
}


@pytest.mark.parametrize("name", NEVER)
def test_what_can_never_work_is_refused_with_one_reason_and_a_way_out(name: str) -> None:
    at, words = NEVER[name]
    assert len(findings_of(Level.FAIL, at)) == 1
    plan = decide_preparation(at)
    assert plan.launch is not None
    assert plan.launch.refusal
    assert plan.launch.hint
    assert words in f"{plan.launch.refusal} {plan.launch.hint}"
    assert "\n" not in plan.launch.refusal + plan.launch.hint
    assert plan.launch.argv == ()
    assert plan.key is None
    assert unit_of("x") in plan.units  # the limits are set all the same


ENGINE = EngineFacts(
    current=Installed("vllm-0.32.0", "vllm", "0.32.0", whole=True), names=frozenset({"vllm-0.32.0"}), marks={"vllm-0.32.0": 1.0}
)


def test_an_untried_engine_is_started_and_warned_of() -> None:
    at = with_facts(engine=replace(ENGINE, untried=frozenset({"vllm-0.32.0"})))
    plan = decide_preparation(at)
    assert plan.launch is not None
    assert plan.launch.refusal is None
    assert [line for line in plan.launch.summary if "vllm 0.32.0 is untried" in line and "install --try" in line]
    assert plan.untried is None


def test_the_start_after_the_one_that_tried_it_takes_the_mark_away() -> None:
    plan = decide_preparation(with_facts(engine=ENGINE))
    assert plan.untried == {}
    assert plan.launch is not None
    assert not [line for line in plan.launch.summary if "untried" in line]
    assert decide_preparation(with_facts(engine=replace(ENGINE, marks={}))).untried is None


def test_a_container_without_memory_controller_is_warned_of_and_started() -> None:
    plan = decide_preparation(with_host(controllers=frozenset({"cpu"})))
    assert plan.launch is not None
    assert plan.launch.refusal is None
    assert any("memory controller" in line for line in plan.launch.summary)


def test_the_key_reaches_the_plan_and_nothing_that_is_printed() -> None:
    plan = decide_preparation(with_facts(key=Key(Path("/k"), "sesame")))
    assert plan.key == "sesame"
    assert plan.launch is not None
    assert "sesame" not in repr(plan) + plan.launch.to_json() + repr(GOOD)


def test_the_refusal_of_one_restart_too_many_reaches_the_launch_file() -> None:
    starts = Starts(3, (9_000.0, 9_500.0, 9_900.0))
    at = with_facts(starts=starts, units={"vllm@x.service": {"NRestarts": "4"}})
    plan = decide_preparation(at)
    assert plan.launch is not None
    assert plan.launch.gave_up
    assert "restarted 3 times within an hour and ended again: it is not restarted any more" in (plan.launch.refusal or "")
    assert "systemctl start vllm@x" in plan.launch.hint
    assert plan.starts.counted == 4


def test_each_automatic_restart_waits_longer() -> None:
    pauses = []
    for earlier in ((), (9_000.0,), (9_000.0, 9_500.0)):
        at = with_facts(starts=Starts(len(earlier), earlier), units={"vllm@x.service": {"NRestarts": str(len(earlier) + 1)}})
        plan = decide_preparation(at)
        assert plan.launch is not None
        assert plan.launch.restart == len(earlier) + 1
        pauses.append(plan.launch.pause)
    assert pauses == sorted(set(pauses)) == list(PAUSES)
    by_hand = decide_preparation(with_facts(starts=Starts(3, (9_000.0,)), units={"vllm@x.service": {"NRestarts": "3"}})).launch
    assert by_hand is not None
    assert (by_hand.restart, by_hand.pause) == (0, 0.0)


def test_at_boot_only_what_holds_for_all_is_decided() -> None:
    plan = decide_protection_of_all(GOOD.config, GOOD.budget)
    assert plan.launch is None
    assert "vllm@x.service" not in plan.units
    assert plan.earlyoom.arguments
