"""The decisions of the guard: series of readings, and properties that hold for every series."""

from __future__ import annotations

import re
from collections.abc import Iterable

from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_safe.contract.guard_file import GuardPlan, Threshold
from vllm_safe.guard.guard_decision import CALM, DYING, REST, TICK, GuardAction, GuardState
from vllm_safe.guard.guard_main import ESTIMATING
from vllm_safe.guard.readings import Reading, Usage

PLAN = GuardPlan(squeeze=Threshold(0.2, 2.0), freeze=Threshold(0.4, 5.0), kill=Threshold(0.8, 20.0))
# The share of each two seconds for which system.slice was stalled on its disk during logins beside a hog, with limits alone, on a disk of
# 150 requests a second; every login was as quick as on an idle machine.
LOGINS = (0.01, 0, 0.51, 0, 0.39, 0.06, 0, 0.01, 0, 0.59, 0.26, 0.06, 0, 0, 0, 0, 0.05)
GIB = 1 << 30
HOG, OTHER = "vllm@hog.service", "vllm@other.service"


class Story:
    """A simulated machine whose time advances."""

    def __init__(self, plan: GuardPlan = PLAN) -> None:
        self.guard = GuardState(plan)
        self.now = 1000.0
        self.stalls = {"system.slice memory full": 5.0, "user.slice io full": 7.0}
        self.moved = {HOG: 0, OTHER: 0, "": 0}
        self.held = {HOG: GIB // 4, OTHER: GIB // 4}
        self.available = GIB // 20
        self.certain = True
        self.acts: list[tuple[float, GuardAction]] = []

    def go(  # noqa: PLR0913 - each parameter is a part of the story
        self, seconds: float, *, memory: float = 0.0, io: float = 0.0, hog: int = 0, other: int = 0, system: int = 0
    ) -> list[str]:
        """Advance the time with these shares of stall and pages per second; return the kinds of the actions."""
        before = len(self.acts)
        for _ in range(round(seconds / TICK)):
            self.now += TICK
            self.stalls["system.slice memory full"] += memory * TICK
            self.stalls["user.slice io full"] += io * TICK
            for who, rate in ((HOG, hog), (OTHER, other), ("", system)):
                if self.guard.held_back.get(who) != "frozen":
                    self.moved[who] += round(rate * TICK)
            self.tick()
        return [act.kind for _, act in self.acts[before:]]

    def tick(self) -> None:
        models = {unit: Usage(self.moved[unit], self.held[unit]) for unit in self.held}
        for act in self.guard.tick(self._reading(models)):
            self.acts.append((self.now, act))

    def _reading(self, models: dict[str, Usage]) -> Reading:
        return Reading(self.now, dict(self.stalls), models, self.moved[""], GIB, self.available, GIB, self.certain)

    def frozen(self) -> list[tuple[float, float]]:
        """Return the beginning and end of each freeze."""
        begun: float | None = None
        spans = []
        for when, act in self.acts:
            if act.kind == "freeze":
                begun = when
            elif act.kind == "thaw" and begun is not None:
                spans.append((begun, when))
        return spans


def test_a_model_that_swaps_as_hard_as_it_can_is_left_alone_while_the_os_is_well() -> None:
    story = Story(GuardPlan())
    assert story.go(600, memory=0.15, io=0.1, hog=100_000) + story.go(5, hog=100_000) == []
    for _ in range(100):  # short stalls make no difference
        assert story.go(0.25, memory=1.0, io=1.0, hog=100_000) + story.go(4.75, hog=100_000) == []


def test_logins_that_wait_for_a_hard_disk_now_and_then_go_first_and_nothing_is_frozen_for_them() -> None:
    """The first step is taken soon, since it takes only resources that others want; the second step costs more."""
    story = Story(GuardPlan())
    for share in LOGINS * 5:
        story.go(2, io=share, hog=800)
    assert {act.kind for _, act in story.acts} <= {"squeeze", "restore"}
    assert story.acts[0][1].kind == "squeeze"
    assert "freeze" in story.go(10, io=1.0, hog=800)


def test_an_os_that_suffers_by_itself_blames_no_model() -> None:
    assert Story().go(60, io=1.0, system=1000, hog=10, other=5) == []


def test_the_model_that_moves_most_is_squeezed_then_frozen_then_killed() -> None:
    story = Story()
    kinds = story.go(40, memory=1.0, hog=500, other=100)
    assert kinds[:3] == ["squeeze", "freeze", "thaw"]
    assert "kill" in kinds
    assert {act.unit for _, act in story.acts[: kinds.index("kill")]} == {HOG}
    squeeze = story.acts[0][1]
    assert squeeze.readings["system.slice memory full"] >= 0.2


def test_a_step_is_due_within_a_second_of_its_threshold() -> None:
    story = Story()
    story.go(10, hog=500)
    began = story.now
    story.go(5, io=1.0, hog=500)
    assert story.acts[0][0] - began <= 0.2 * 2.0 + 1.0


def test_io_alone_never_kills() -> None:
    assert "kill" not in Story().go(300, io=1.0, hog=500)


def test_a_freeze_ends_early_when_the_os_no_longer_waits() -> None:
    story = Story()
    story.go(4, memory=1.0, hog=500)
    assert story.guard.held_back == {HOG: "frozen"}
    story.go(3, hog=500)
    ((begun, ended),) = story.frozen()
    assert 1.0 <= ended - begun < PLAN.freeze_time
    assert ended <= 1004.0 + 1.0  # a second after the last stall


def test_each_step_names_the_stall_and_its_setting() -> None:
    story = Story()
    story.go(45, memory=0.9, hog=500)
    texts = {act.kind: re.sub(r"\d+%", "N%", act.text) for _, act in story.acts}
    who = "system services spent N% of the last"
    assert texts["squeeze"] == f"squeezed to the lowest CPU and I/O weights: {who} 2 s stalled on memory (guard.squeeze_pressure)"
    assert texts["freeze"] == f"frozen for at most 3 s: {who} 5 s stalled on memory (guard.freeze_pressure)"
    assert texts["kill"] == f"killed by the vllm-safe guard: {who} 20 s stalled on memory (guard.kill_pressure)"


def test_without_psi_the_text_says_that_the_stall_is_an_estimate() -> None:
    story = Story()
    story.stalls["init.scope memory faults"] = 0.0
    story.go(2, hog=500)
    for _ in range(8):
        story.stalls["init.scope memory faults"] += TICK
        story.go(TICK, hog=500)
    assert "systemd spent an estimated " in story.acts[0][1].text


def test_calm_gives_the_share_back_once() -> None:
    story = Story()
    assert story.go(2, memory=0.5, hog=500) == ["squeeze"]
    assert story.go(CALM - 2, hog=500) == []
    assert story.go(10, memory=0.05, hog=500) == ["restore"]
    story.go(20)
    assert not story.guard.wakeful


def test_who_holds_most_of_the_ram_and_does_nothing_is_killed_last_of_all() -> None:
    story = Story()
    story.held[OTHER] = GIB * 6 // 10
    assert story.go(21, memory=1.0) == ["kill"]
    assert story.acts[0][1].unit == OTHER


def test_what_is_killed_is_left_alone_as_long_as_it_dies() -> None:
    story = Story(GuardPlan(kill=Threshold(0.1, 2.0)))
    story.go(60, memory=1.0, hog=500)
    (killed, *_) = [when for when, act in story.acts if act.kind == "kill"]
    later = [(when, act.kind) for when, act in story.acts if when > killed]
    assert min(when for when, _ in later) >= killed + DYING
    assert "kill" in [kind for _, kind in later]  # a model that does not exit is killed again


def test_who_holds_most_of_the_ram_has_nothing_to_do_with_a_container_at_its_own_limit() -> None:
    story = Story()
    story.held[OTHER], story.available = GIB * 6 // 10, GIB // 5
    assert story.go(300, memory=1.0) == []


def test_the_kernel_wakes_us_more_often_than_we_look_and_the_kill_comes_in_time() -> None:
    story = Story()
    story.held[OTHER] = GIB * 6 // 10
    for _ in range(80):
        story.now += 0.3
        story.stalls["system.slice memory full"] += 0.3
        story.guard.woken(story.now - 0.001)
        story.tick()
    ((when, act),) = story.acts
    assert act.kind == "kill"
    assert 0.8 * 20 <= when - 1000.0 <= 0.8 * 20 + 2


def test_a_freeze_that_helps_only_while_it_lasts_does_not_put_off_the_kill_for_ever() -> None:
    story = Story(GuardPlan())
    story.go(5, hog=500)
    while "kill" not in [act.kind for _, act in story.acts]:
        assert story.now < 1000.0 + 5 + 2 * GuardPlan().kill.after
        story.go(TICK, memory=0.0 if HOG in story.guard.held_back and story.guard.held_back[HOG] == "frozen" else 1.0, hog=500)
    assert len(story.frozen()) > 3
    assert story.acts[-1][1].unit == HOG


def test_while_one_stands_still_no_other_is_blamed_for_the_little_it_does() -> None:
    story = Story(GuardPlan(freeze_time=5.0))
    story.go(60, memory=1.0, hog=500, other=300)
    assert len(story.frozen()) > 3
    assert {act.unit for _, act in story.acts} == {HOG}


def test_another_is_blamed_once_it_moves_more_with_all_running() -> None:
    story = Story()
    story.go(4, memory=1.0, hog=500)
    story.go(20, memory=0.6, other=500)
    assert [act.unit for _, act in story.acts if act.kind in {"squeeze", "freeze"}][:2] == [HOG, HOG]
    assert ("squeeze", OTHER) in [(act.kind, act.unit) for _, act in story.acts]


def test_the_next_run_of_a_model_that_ended_frozen_is_not_blamed() -> None:
    story = Story()
    story.go(4, memory=1.0, hog=500)
    assert story.guard.held_back == {HOG: "frozen"}
    held = story.held.pop(HOG)
    story.go(1)
    story.held[HOG] = held
    story.go(60, memory=1.0, other=500)
    assert {act.unit for _, act in story.acts if act.kind == "kill"} == {OTHER}


def test_what_is_only_estimated_does_not_kill() -> None:
    story = Story()
    story.certain = False
    kinds = story.go(120, memory=1.0, hog=500)
    assert "freeze" in kinds
    assert "kill" not in kinds
    story.certain = True
    assert "kill" in story.go(5, memory=1.0, hog=500)


def test_an_estimate_each_second_is_soon_enough() -> None:
    story = Story(GuardPlan())
    for second in range(30):
        story.now += ESTIMATING
        story.stalls["system.slice memory full"] += ESTIMATING * (second >= 20)
        story.moved[HOG] += 500
        story.tick()
    assert story.acts[0][1].kind == "squeeze"
    squeeze = GuardPlan().squeeze
    assert story.acts[0][0] - (1000.0 + 20 * ESTIMATING) <= squeeze.pressure * squeeze.after + 1.0
    assert story.guard.wakeful


def test_after_a_kill_the_next_has_all_its_time() -> None:
    story = Story()
    story.held[OTHER] = GIB * 6 // 10
    assert story.go(31, memory=1.0) == ["kill"]


def test_a_suspend_or_a_clock_that_jumps_is_no_pressure() -> None:
    story = Story()
    story.go(5, hog=500)
    for gap in (3600.0, -50.0):
        story.now += gap
        story.stalls["system.slice memory full"] += abs(gap)
        story.guard.suspended()
        story.tick()
    assert story.acts == []
    story.now += 500  # the same without a notice of the suspend
    story.stalls["system.slice memory full"] += 500
    story.tick()
    assert "kill" not in story.go(3, hog=500)


def test_a_model_that_is_gone_is_forgotten() -> None:
    story = Story()
    story.go(4, memory=1.0, hog=500)
    del story.held[HOG]
    story.tick()
    assert story.guard.held_back == {}


def test_switched_off_everything_is_given_back() -> None:
    story = Story()
    story.go(4, memory=1.0, hog=500)
    story.guard.obey(PLAN._replace(enabled=False))
    assert story.go(TICK, memory=1.0, hog=500) == ["thaw", "restore"]
    assert story.go(60, memory=1.0, hog=500) == []


def test_at_its_end_everything_is_given_back() -> None:
    story = Story()
    story.go(4, memory=1.0, hog=500)
    assert [act.kind for act in story.guard.release()] == ["thaw", "restore"]
    assert story.guard.release() == []


Phase = tuple[float, float, float, int, int]


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.floats(0.25, 30),
            st.sampled_from([0.0, 0.3, 0.6, 1.0]),
            st.sampled_from([0.0, 0.5, 1.0]),
            st.integers(0, 2000),
            st.integers(0, 500),
        ),
        max_size=12,
    )
)
def test_whatever_happens_freezes_are_bounded_and_acts_are_on_models_alone(phases: Iterable[Phase]) -> None:
    story = Story()
    for seconds, memory, io, hog, other in phases:
        story.go(seconds, memory=memory, io=io, hog=hog, other=other)
    story.go(2 * CALM)
    assert story.guard.held_back == {}
    assert {act.unit for _, act in story.acts} <= {HOG, OTHER}
    for unit in (HOG, OTHER):
        kinds = [act.kind for _, act in story.acts if act.unit == unit]
        assert kinds.count("freeze") == kinds.count("thaw")
    by_unit = {unit: [when for when, act in story.acts if act.unit == unit and act.kind in {"freeze", "thaw"}] for unit in (HOG, OTHER)}
    for times in by_unit.values():
        assert all(ended - begun <= PLAN.freeze_time + TICK for begun, ended in zip(times[0::2], times[1::2], strict=True))
        for begun, ended, again in zip(times[0::2], times[1::2], times[2::2], strict=False):
            assert again - ended >= REST * (ended - begun) - 1e-6
