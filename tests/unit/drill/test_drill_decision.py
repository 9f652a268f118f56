"""The drill's decisions: the size of the hog, when the drill is refused, and the verdict on samples."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from vllm_safe.common.sizes import GIB, MIB, Amount
from vllm_safe.config.settings import Config
from vllm_safe.decide.limits import DecidedLimits, decide_budget
from vllm_safe.drill.drill_decision import (
    DrillSamples,
    HogPressure,
    bound_usual,
    check_ready,
    compare_latency,
    decide_hog,
    drill_as_json,
    judge_drill,
    percentile,
    share_within,
)
from vllm_safe.drill.login_probes import GAP, LOGIN, SSH, STALL, ProbeSample
from vllm_safe.host.host_facts import Host, SwapArea

HOST = Host(memory=16 * GIB, memory_available=14 * GIB, swaps=(SwapArea("/swapfile", "file", 128 * GIB, 0),), cgroup2=True)


def limits(host: Host) -> DecidedLimits:
    return decide_budget(Config(), host).of("")


def taken(what: str, *seconds: float) -> list[ProbeSample]:
    return [ProbeSample(float(at), what, value, 1.0 if what.startswith(STALL) else 0.0) for at, value in enumerate(seconds)]


IDLE = DrillSamples([*taken(LOGIN, *[0.1] * 20), *taken(GAP, 0.1, 0.12), *taken(f"{STALL}:system.slice", 0, 0)])
LIVED = HogPressure()


def failed(drill: DrillSamples, hog: HogPressure = LIVED, idle: DrillSamples = IDLE) -> list[str]:
    return [line.what for line in judge_drill(idle, drill, hog) if not line.met]


class TestHog:
    def test_half_of_it_does_not_fit_into_its_ram(self) -> None:
        hog = decide_hog(limits(HOST), 2)
        assert 1.8 < hog.size / limits(HOST).memory_max.value < 2
        assert hog.processes == 4

    @pytest.mark.parametrize("swap", [0, 64 * MIB, GIB])
    def test_it_never_asks_for_more_than_it_may_have(self, swap: int) -> None:
        host = Host(memory=GIB, swaps=(SwapArea("/s", "file", swap, 0),))
        own, hog = limits(host), decide_hog(limits(host), 4)
        assert 0 < hog.full < hog.size < own.memory_max.value + own.swap_max.value

    @pytest.mark.parametrize("cpus", [1, 8, 64, 512])
    @pytest.mark.parametrize("memory", [128 * MIB, 512 * MIB, 4 * GIB])
    def test_however_many_processors_it_is_more_than_its_ram(self, cpus: int, memory: int) -> None:
        config = Config(limits=replace(Config().limits, memory_max=Amount(memory)))
        own = decide_budget(config, HOST).of("")
        hog = decide_hog(own, cpus)
        assert own.memory_max.value == memory < hog.size
        assert hog.full == memory * 3 // 4

    def test_without_swap_it_still_comes_near_its_limit(self) -> None:
        for memory in (512 * MIB, GIB, 16 * GIB):
            hog = decide_hog(limits(Host(memory=memory)), 64)
            assert hog.full < hog.size

    def test_it_has_no_more_processes_than_it_may(self) -> None:
        config = Config(limits=replace(Config().limits, tasks_max=16))
        assert decide_hog(decide_budget(config, HOST).of(""), 64).processes == 15

    def test_limits_that_leave_nothing_make_no_negative_hog(self) -> None:
        assert decide_hog(limits(Host(memory=16 * MIB)), 64).size == 0


class TestReady:
    def test_a_machine_at_rest(self) -> None:
        assert check_ready(decide_budget(Config(), HOST), HOST, (), 0.0).level == "pass"
        assert check_ready(decide_budget(Config(), HOST), HOST, (), None).level == "pass"

    @pytest.mark.parametrize(
        ("host", "occupants", "pressed", "word"),
        [
            (HOST, ("vllm@x.service",), 0.0, "vllm@x.service is running"),
            (Host(memory=16 * GIB, memory_available=GIB), (), 0.0, "not enough memory is free"),
            (
                Host(memory=16 * GIB, memory_available=14 * GIB, swaps=(SwapArea("/s", "file", 8, 5),)),
                (),
                0.0,
                "half of the swap is in use",
            ),
            (HOST, (), 0.11, "waited for memory in 11% of the last ten seconds"),
        ],
    )
    def test_what_is_refused(self, host: Host, occupants: tuple[str, ...], pressed: float, word: str) -> None:
        finding = check_ready(decide_budget(Config(), host), host, occupants, pressed)
        assert finding.level == "fail"
        assert word in finding.what
        assert finding.do_next


class TestJudge:
    def test_logins_as_when_idle_pass(self) -> None:
        assert failed(IDLE) == []

    def test_slow_for_a_machine_but_not_for_a_person_passes(self) -> None:
        assert failed(DrillSamples([*taken(LOGIN, *[1.0] * 50), *taken(GAP, 1.0)])) == []

    def test_one_login_that_takes_too_long_fails_twice(self) -> None:
        """A single login of 30 s counts as the worst, and for everybody who came meanwhile."""
        assert failed(DrillSamples([*taken(LOGIN, *[0.1] * 50, 30.0), *taken(GAP, 0.1)])) == ["login: worst", "login: share within 1.1 s"]

    def test_many_logins_a_little_slow_fail(self) -> None:
        assert failed(DrillSamples([*taken(LOGIN, *[0.1] * 50, *[2.0] * 8), *taken(GAP, 0.1)])) == ["login: share within 1.1 s"]

    def test_on_a_slow_machine_the_bound_is_twice_the_idle_one(self) -> None:
        slow = DrillSamples([*taken(LOGIN, *[4.0] * 5), *taken(GAP, 0.1)])
        assert bound_usual(slow) == 8.0
        assert failed(DrillSamples([*taken(LOGIN, 7.9, 7.9), *taken(GAP, 0.1)]), idle=slow) == []

    def test_a_login_that_comes_to_nothing_fails(self) -> None:
        drill = DrillSamples([*taken(LOGIN, *[0.1] * 200), *taken(GAP, 0.1)], failed=taken(LOGIN, 0.5))
        assert failed(drill) == ["login: worst", "login: failed"]

    def test_nothing_measured_is_no_pass(self) -> None:
        assert failed(DrillSamples(())) == ["login: worst", "login: share within 1.1 s", "longest gap of a 0.1 s heartbeat"]

    def test_a_machine_that_stood_still_fails(self) -> None:
        assert failed(DrillSamples([*IDLE.samples, *taken(GAP, 20.0)])) == ["longest gap of a 0.1 s heartbeat"]
        assert failed(DrillSamples([*IDLE.samples, *taken(f"{STALL}:init.scope", 1.0)])) == ["init.scope stalled for memory"]

    def test_a_hog_that_did_not_press_shows_nothing(self) -> None:
        assert failed(IDLE, HogPressure(near=0.2)) == ["time with the hog near its limit"]

    def test_a_hog_that_was_killed_fails_however_long_it_pressed(self) -> None:
        assert failed(IDLE, HogPressure(near=0.9, lived=0.9)) == ["time that the hog lived"]

    def test_a_hog_that_touched_nothing_shows_nothing(self) -> None:
        assert failed(IDLE, HogPressure(pages=0)) == ["pages that the hog touched"]

    def test_the_quiet_before_the_hog_pressed_dilutes_nothing(self) -> None:
        stall = f"{STALL}:system.slice"
        before = [*taken(LOGIN, *[0.1] * 100), *taken(GAP, 0.1), *taken(stall, *[0.0] * 100)]
        beside = [ProbeSample(100 + at, LOGIN, 2.0) for at in range(5)] + [ProbeSample(100 + at, stall, 0.2, 1.0) for at in range(1, 10)]
        assert failed(DrillSamples([*before, *beside])) == []
        assert failed(DrillSamples([*before, *beside], since=100.0)) == ["login: share within 1.1 s", "system.slice stalled for memory"]

    def test_a_login_that_hung_while_it_filled_is_as_bad(self) -> None:
        drill = DrillSamples(
            [*taken(LOGIN, 30.0), *(ProbeSample(100.0 + at, LOGIN, 0.1) for at in range(50)), *taken(GAP, 0.1)], since=100.0
        )
        assert failed(drill) == ["login: worst"]

    def test_a_login_under_way_when_the_hog_began_to_press_is_one_beside_it(self) -> None:
        assert DrillSamples([ProbeSample(1.0, LOGIN, 0.5), ProbeSample(2.0, LOGIN, 40.0)], since=30.0).pressed(LOGIN) == [40.0]

    def test_ssh_is_judged_where_it_was_measured(self) -> None:
        idle = DrillSamples([*IDLE.samples, *taken(SSH, 0.2, 0.2)])
        assert failed(DrillSamples([*IDLE.samples, *taken(SSH, 40.0)]), idle=idle) == [
            "ssh to localhost: worst",
            "ssh to localhost: share within 1.2 s",
        ]
        assert not [line for line in judge_drill(IDLE, IDLE, LIVED) if "ssh" in line.what]

    def test_each_row_has_the_same_cells_and_can_be_json(self) -> None:
        lines = judge_drill(IDLE, IDLE, LIVED)
        assert {len(line.cells()) for line in lines} == {5}
        assert json.loads(json.dumps(drill_as_json(lines)))[0]["what"] == "login: median"
        assert ("login: worst", "0.10 s", "0.10 s", "<= 10.10 s", "met") in [line.cells() for line in lines]


@pytest.mark.parametrize(
    ("since", "until", "share"), [(-math.inf, math.inf, 0.5), (8.0, math.inf, 10 / 12), (18.0, math.inf, 1.0), (0.0, 12.0, 2 / 12)]
)
def test_a_stall_weighs_as_long_as_it_was(since: float, until: float, share: float) -> None:
    """Ten quick samples without a stall, and one over ten seconds in which nothing ran."""
    stall = f"{STALL}:user.slice"
    samples = [*(ProbeSample(float(at), stall, 0.0, 1.0) for at in range(1, 11)), ProbeSample(20.0, stall, 1.0, 10.0)]
    assert DrillSamples(samples, since=since, until=until).share(stall) == pytest.approx(share)
    assert DrillSamples(samples, since=since, until=until).share("nothing") is None


@pytest.mark.parametrize(
    ("seconds", "every", "waits"), [(0.2, 1, [0.2]), (1.0, 1, [1.0]), (3.5, 1, [3.5, 2.5, 1.5, 0.5]), (5.0, 2, [5.0, 3.0, 1.0])]
)
def test_a_slow_login_is_felt_by_all_who_come_meanwhile(seconds: float, every: float, waits: list[float]) -> None:
    assert compare_latency([seconds], every) == waits


def test_percentiles_are_values_that_occurred() -> None:
    assert [percentile([3, 1, 2], percent) for percent in (0, 50, 99)] == [1, 2, 3]
    assert percentile([], 50) == 0.0
    assert percentile(range(1, 101), 99) == 99
    assert share_within([], 1.0) is None
