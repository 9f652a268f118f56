"""Which models stop for another one: never a pinned one, never more than it takes, and afterwards everything fits."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_safe.common.sizes import GIB
from vllm_safe.contract.gateway_file import GatewayFile, GatewayModel
from vllm_safe.room.room_decision import _FEW, RoomPlan, UpModel, decide_room, find_shortage, fit_together


def model(name: str, *, gpus: dict[int, float] | None = None, memory: float = 0.0) -> GatewayModel:
    needs = {number: int(share * GIB) for number, share in (gpus or {}).items()}
    return GatewayModel(name, (name,), "", ("127.0.0.1", 18000), on_demand=True, needs=needs, memory=int(memory * GIB))


def machine(*models: GatewayModel, gpus: int = 2, memory: float = 16.0) -> GatewayFile:
    """Return a machine with GPUs of 12 GiB."""
    return GatewayFile(models=models, gpus=dict.fromkeys(range(gpus), 12 * GIB), memory=int(memory * GIB))


BIG = model("big", gpus={0: 11, 1: 11})
LEFT, RIGHT = model("left", gpus={0: 8}), model("right", gpus={1: 8})
SMALL = model("small", gpus={0: 3})
ALL = machine(BIG, LEFT, RIGHT, SMALL)


def test_nothing_stops_where_there_is_room() -> None:
    assert decide_room("left", [UpModel("right"), UpModel("small")], ALL) == RoomPlan()


def test_only_what_is_in_the_way_stops() -> None:
    assert decide_room("right", [UpModel("small"), UpModel("big", stays=7.0)], ALL) == RoomPlan(("big",), 7.0)


def test_all_that_are_in_the_way_stop_and_none_before_its_time() -> None:
    plan = decide_room("big", [UpModel("left", stays=5.0), UpModel("right", stays=9.0)], ALL)
    assert (sorted(plan.stops), plan.due) == (["left", "right"], 9.0)


def test_a_model_that_loads_is_let_load() -> None:
    assert decide_room("big", [UpModel("left", stays=math.inf)], ALL) == RoomPlan(("left",), math.inf)


def test_one_stops_rather_than_two_and_the_least_recently_used_one() -> None:
    there = machine(*(model(name, gpus={0: 5}) for name in "abc"), model("two", gpus={0: 10}))
    assert decide_room("c", [UpModel("a", used=20.0), UpModel("b", used=10.0)], there).stops == ("b",)
    assert decide_room("two", [UpModel("a", used=20.0), UpModel("b", used=10.0)], there).stops == ("b", "a")


def test_a_model_that_answers_stops_last() -> None:
    there = machine(*(model(name, gpus={0: 5}) for name in "abc"))
    assert decide_room("c", [UpModel("a", used=math.inf), UpModel("b", used=10.0)], there).stops == ("b",)


def test_what_a_person_started_never_stops_and_is_named() -> None:
    plan = decide_room("big", [UpModel("left", pinned=True), UpModel("right")], ALL)
    assert plan == RoomPlan(
        obstacle="there is no room for big, which needs 11.0 GiB of GPU 0: of 12.0 GiB, left has 8.0 GiB, which was started by hand",
        holders=("left",),
    )


def test_several_that_a_person_started_are_named_where_each_of_them_is_in_the_way() -> None:
    plan = decide_room("big", [UpModel("left", pinned=True), UpModel("small", pinned=True)], ALL)
    assert plan.holders == ("left", "small")
    assert "left has 8.0 GiB and small has 3.0 GiB, which were started by hand" in plan.obstacle


def test_ram_counts_as_gpus_do() -> None:
    there = machine(model("a", memory=10), model("b", memory=8), gpus=0)
    assert decide_room("a", [UpModel("b")], there).stops == ("b",)
    assert "8.0 GiB of RAM" not in decide_room("b", [UpModel("a", pinned=True)], there).obstacle.partition(":")[2]
    assert "needs 8.0 GiB of RAM: of 16.0 GiB, a has 10.0 GiB" in decide_room("b", [UpModel("a", pinned=True)], there).obstacle


def test_a_model_that_is_too_large_for_the_machine_is_no_matter_of_room() -> None:
    assert decide_room("huge", [], machine(model("huge", gpus={0: 40}, memory=99))) == RoomPlan()


def test_a_model_that_is_not_configured_any_more_needs_everything() -> None:
    assert decide_room("left", [UpModel("gone")], ALL).stops == ("gone",)
    assert decide_room("left", [UpModel("gone", pinned=True)], ALL).holders == ("gone",)


def test_a_model_is_not_in_its_own_way() -> None:
    assert decide_room("big", [UpModel("big", pinned=True)], ALL) == RoomPlan()


def test_what_is_short_is_said() -> None:
    assert find_shortage([BIG, LEFT], ALL) == (0, 12 * GIB)
    assert find_shortage([LEFT, RIGHT], ALL) is None


names = [f"m{number}" for number in range(20)]
needs = st.dictionaries(st.integers(0, 2), st.integers(1, 12), max_size=3)
claims = st.lists(st.tuples(needs, st.integers(0, 16)), min_size=2, max_size=6)
ups = st.tuples(st.booleans(), st.floats(0, 100) | st.just(math.inf), st.floats(0, 100))


@st.composite
def situations(draw: st.DrawFn) -> tuple[GatewayFile, list[UpModel]]:
    """Return a machine, and models on it that fit together."""
    given_claims = draw(claims)
    models = [model(name, gpus=dict(gpus), memory=memory) for name, (gpus, memory) in zip(names, given_claims, strict=False)]
    there = machine(*models, gpus=3)
    up: list[UpModel] = []
    for one in models[1:]:
        if fit_together([one, *(other for other in models if other.name in {there.name for there in up})], there):
            up.append(UpModel(one.name, *draw(ups)))
    return there, up


@settings(deadline=None, max_examples=300)
@given(situations())
def test_whatever_is_up_the_decision_fits_and_is_the_least(situation: tuple[GatewayFile, list[UpModel]]) -> None:
    there, up = situation
    plan = decide_room("m0", up, there)
    claim = {one.name: one for one in there.models}
    pinned = [one.name for one in up if one.pinned]
    free = [one.name for one in up if not one.pinned]
    if plan.obstacle:
        assert not fit_together([claim["m0"], *(claim[name] for name in pinned)], there)
        assert set(plan.holders) <= set(pinned)
        assert plan.stops == ()
        return
    assert set(plan.stops) <= set(free)
    assert fit_together([claim["m0"], *(claim[one.name] for one in up if one.name not in plan.stops)], there)
    fewer = [choice for count in range(len(plan.stops)) for choice in combinations(free, count)]
    assert not any(fit_together([claim["m0"], *(claim[one.name] for one in up if one.name not in choice)], there) for choice in fewer)
    assert plan.due == max((one.stays for one in up if one.name in plan.stops), default=0.0)


@pytest.mark.parametrize("count", [_FEW, _FEW + 5])
def test_many_models_are_decided_at_once(count: int) -> None:
    there = machine(*(model(name, gpus={0: 0.5}) for name in names[:count]), model("big", gpus={0: 11}), gpus=1)
    plan = decide_room("big", [UpModel(name, used=float(age)) for age, name in enumerate(names[:count])], there)
    assert plan.stops == tuple(names[: count - 2])
