"""Who asked for a start, a client or a person, and which models are up: by systemd's jobs as versions 252 and 257 number them."""

from __future__ import annotations

import math

import pytest

from vllm_safe.contract.launch_file import Launch
from vllm_safe.decide.demand_decision import decide_request, decide_up, has_failed, is_up_already, waits_to_restart
from vllm_safe.host.demand_facts import DemandFacts, LaunchFacts, UnitFacts
from vllm_safe.room.room_decision import UpModel

DEAD = UnitFacts(job=213)
ASKED, BY_HAND = LaunchFacts(Launch("x", request=90)), LaunchFacts(Launch("x"))


def facts(unit: UnitFacts, *, proxy: int = 0, before: LaunchFacts | None = None, preparing: UnitFacts | None = None) -> DemandFacts:
    return DemandFacts(
        models={"x": unit},
        proxies={"x": UnitFacts(job=proxy)},
        launches={"x": before} if before else {},
        preparing={"x": preparing} if preparing else {},
        now=1000.0,
    )


@pytest.mark.parametrize(
    ("at", "request_of"),
    [
        pytest.param(facts(DEAD, proxy=155), 155, id="a client connects"),
        pytest.param(facts(DEAD), 0, id="systemctl start"),
        pytest.param(facts(DEAD, proxy=240), 0, id="a client connects while a person starts it"),
        pytest.param(facts(DEAD, proxy=155, before=ASKED), 155, id="the next request"),
        pytest.param(facts(DEAD, proxy=155, before=BY_HAND), 155, id="a request after a person has stopped it"),
        pytest.param(facts(DEAD, proxy=90, before=ASKED), 0, id="systemctl restart while a request has it loaded"),
        pytest.param(facts(DEAD, proxy=90, before=LaunchFacts(Launch("x", "no room", request=90))), 90, id="refused before"),
        pytest.param(facts(UnitFacts(job=213, restarts=1), before=ASKED), 90, id="an automatic restart of what a request started"),
        pytest.param(facts(UnitFacts(job=213, restarts=1), proxy=155, before=BY_HAND), 0, id="one of what a person started"),
        pytest.param(facts(UnitFacts(sub="auto-restart", job=213), proxy=155, before=BY_HAND), 0, id="a client meanwhile"),
        pytest.param(facts(UnitFacts(sub="auto-restart", job=213), proxy=155, before=ASKED), 155, id="a client meanwhile, again"),
        pytest.param(facts(UnitFacts(sub="auto-restart", job=213), before=ASKED), 0, id="a person meanwhile"),
        pytest.param(DemandFacts(), 0, id="without systemd"),
    ],
)
def test_who_asked(at: DemandFacts, request_of: int) -> None:
    assert decide_request(at, "x") == request_of


@pytest.mark.parametrize(
    ("unit", "up"),
    [
        (UnitFacts("active", "running"), True),
        (UnitFacts("activating", "start"), True),
        (UnitFacts("deactivating", "stop-sigterm"), True),
        (UnitFacts("activating", "auto-restart"), False),
        (UnitFacts("activating", "auto-restart-queued"), False),
        (UnitFacts("failed", "failed"), False),
        (DEAD, False),
    ],
)
def test_what_is_up_is_prepared_for_nobody(unit: UnitFacts, *, up: bool) -> None:
    assert is_up_already(facts(unit), "x") is up


def test_a_failure_is_one_of_the_server_and_no_refusal() -> None:
    failed = UnitFacts("failed", "failed", "exit-code")
    assert has_failed(facts(failed, before=ASKED), "x")
    assert has_failed(facts(failed, before=LaunchFacts(Launch("x", "too often", gave_up=True))), "x")
    assert not has_failed(facts(failed, before=LaunchFacts(Launch("x", "no room"))), "x")
    assert not has_failed(facts(failed), "x")
    assert not has_failed(facts(UnitFacts(), before=ASKED), "x")


def test_a_restart_is_waited_for_until_systemd_counts_it() -> None:
    assert waits_to_restart(facts(UnitFacts("activating", "auto-restart"), before=ASKED), "x")
    assert not waits_to_restart(facts(UnitFacts("activating", "auto-restart-queued", restarts=1), before=ASKED), "x")
    assert not waits_to_restart(facts(DEAD, before=ASKED), "x")


def up(unit: UnitFacts, before: LaunchFacts | None = ASKED, preparing: UnitFacts | None = None) -> tuple[UpModel, ...]:
    return decide_up(facts(unit, before=before, preparing=preparing), "other")


def test_a_model_that_serves_stays_as_long_as_its_load_took() -> None:
    assert up(UnitFacts("active", "running", begun=100.0, ready=160.0)) == (UpModel("x", stays=220.0),)
    assert up(UnitFacts("active", "running", begun=100.0, ready=160.0), BY_HAND) == (UpModel("x", pinned=True, stays=220.0),)


def test_a_model_that_loads_is_let_load_and_one_that_stops_goes() -> None:
    assert up(UnitFacts("activating", "start", begun=100.0)) == (UpModel("x", stays=math.inf),)
    assert up(UnitFacts("deactivating", "stop-sigterm"), BY_HAND) == (UpModel("x"),)


def test_a_model_without_a_launch_file_is_a_persons() -> None:
    assert up(UnitFacts("active", "running"), None)[0].pinned


def test_a_start_that_is_prepared_and_comes_next_has_its_place() -> None:
    prepared = LaunchFacts(Launch("x", request=90), written=510.0)
    assert up(DEAD, prepared) == (UpModel("x", stays=math.inf),)
    assert up(DEAD, prepared, UnitFacts("activating", "start", job=214, begun=500.0)) == (UpModel("x", stays=math.inf),)


def test_a_start_that_waits_for_room_itself_has_none_yet() -> None:
    earlier = LaunchFacts(Launch("x", request=90), written=400.0)
    assert up(DEAD, earlier, UnitFacts("activating", "start", job=214, begun=500.0)) == ()
    assert up(DEAD, earlier, UnitFacts("inactive", "dead", job=214)) == ()


def test_what_does_not_run_is_not_up() -> None:
    assert up(UnitFacts()) == ()
    assert up(UnitFacts("activating", "auto-restart")) == ()
    assert decide_up(facts(UnitFacts("active", "running")), "x") == ()
