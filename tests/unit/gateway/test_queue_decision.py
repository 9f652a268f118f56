"""The queue: what each decision says, and a machine on which three models never fit together."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_safe.contract.gateway_file import GatewayFile, GatewayModel
from vllm_safe.gateway.queue_decision import (
    COMING,
    DOWN,
    FAILED,
    GOING,
    READY,
    QueueMoves,
    Standing,
    WaitingRequest,
    decide_queue,
)
from vllm_safe.room.room_decision import UpModel, decide_room, fit_together

GRACE = 30.0


def model(name: str, need: int, *, on_demand: bool = True) -> GatewayModel:
    socket = f"/run/{name}.sock" if on_demand else ""
    return GatewayModel(name, (name,), socket, ("127.0.0.1", 1), on_demand, 600.0, GRACE, needs={0: need})


PAIR = GatewayFile(models=(model("a", 6), model("b", 6), model("c", 4), model("hand", 4, on_demand=False)), gpus={0: 10})


def decide(waiting: str, now: float = 1000.0, **standings: Standing) -> QueueMoves:
    requests = [WaitingRequest(number, name) for number, name in enumerate(waiting.split())]
    return decide_queue(now, requests, {one.name: standings.get(one.name, Standing()) for one in PAIR.models}, PAIR)


def ready(in_flight: int = 0, *, since: float = 0.0, load: float = 60.0, held: float | None = None, pinned: bool = False) -> Standing:
    return Standing(READY, in_flight, used=since, ready=since, load=load, held=held, pinned=pinned)


def test_a_model_that_is_ready_serves_all_who_wait_for_it() -> None:
    assert decide("a a", a=ready()).serve == (0, 1)


def test_where_there_is_room_a_model_is_woken_at_once() -> None:
    assert decide("a c") == QueueMoves(wake=("a", "c"))


def test_what_is_loading_is_waited_for() -> None:
    assert decide("a", a=Standing(COMING)) == QueueMoves()
    assert decide("a", a=Standing(woken=True)) == QueueMoves()


def test_a_start_that_failed_is_told() -> None:
    assert decide("a", a=Standing(FAILED, problem="no GPU")).refuse == {"a": "no GPU"}


def test_a_model_that_no_request_starts_is_not_waited_for_unless_somebody_starts_it() -> None:
    assert "systemctl start vllm@hand" in decide("hand").refuse["hand"]
    assert decide("hand", hand=Standing(COMING)) == QueueMoves()


def test_what_a_person_started_does_not_go() -> None:
    moves = decide("b", a=ready(pinned=True))
    assert (moves.wake, moves.hold) == ((), frozenset())
    assert "which was started by hand" in moves.refuse["b"]


def test_a_model_stays_as_long_as_its_load_took_and_serves_meanwhile() -> None:
    moves = decide("b a", now=1000.0, a=ready(since=990.0, load=60.0))
    assert moves == QueueMoves(serve=(1,), waits_for={"b": ("a",)}, again=1050.0)


def test_then_new_requests_are_held_and_those_that_run_end() -> None:
    moves = decide("b a", a=ready(2, held=995.0))
    assert (moves.serve, moves.hold, moves.wake, moves.again) == ((), {"a"}, (), 995.0 + GRACE)


def test_an_empty_model_goes_at_once() -> None:
    moves = decide("b a", a=ready())
    assert (moves.serve, moves.hold, moves.wake) == ((), {"a"}, ("b",))


def test_after_stop_grace_it_goes_with_its_requests() -> None:
    assert decide("b", a=ready(1, held=1000.0 - GRACE)).wake == ("b",)


def test_it_is_held_until_the_other_one_loads() -> None:
    """Between the request to systemd and its stop nothing new is sent to it."""
    moves = decide("a b", a=ready(held=990.0), b=Standing(DOWN, woken=True))
    assert (moves.serve, moves.hold, moves.wake) == ((), {"a"}, ())
    assert decide("a", a=ready(held=990.0), b=Standing(GOING, woken=True)).hold == {"a"}


def test_who_came_before_the_switch_is_served_before_it() -> None:
    """`b` has just been loaded for a request, and the next one wants it gone."""
    moves = decide("b a b", b=ready())
    assert (moves.serve, moves.hold, moves.wake) == ((0,), {"b"}, ())


def test_a_switch_that_nobody_waits_for_any_more_is_called_off() -> None:
    assert decide("a", a=ready(held=990.0)) == QueueMoves(serve=(0,))


def test_nothing_takes_the_room_that_an_earlier_request_waits_for() -> None:
    """`b` waits for `a`, then `b` and `c` have all there is: `c` may start now, since it fits beside both."""
    moves = decide("b c", a=ready(1, held=1000.0))
    assert (moves.hold, moves.wake) == ({"a"}, ())
    assert decide("c", a=ready(1)).wake == ("c",)


def test_one_switch_at_a_time() -> None:
    moves = decide("b a", a=Standing(DOWN), b=Standing(DOWN), c=ready(held=None, since=0.0), hand=ready(pinned=True))
    assert moves.hold == {"c"}
    assert moves.wake == ("b",)
    assert "a" in moves.waits_for


# --- a machine with three models, of which two fit


@dataclass
class Model:
    phase: str = DOWN
    since: float = 0.0
    started: float = 0.0
    used: float = 0.0
    held: float | None = None
    woken: bool = False
    running: list[float] = field(default_factory=list)  # when each request ends


@dataclass
class Machine:
    """Root, systemd and the models, second by second."""

    settings: GatewayFile
    load: dict[str, float]
    now: float = 0.0
    models: dict[str, Model] = field(default_factory=dict)
    cut: list[str] = field(default_factory=list)

    def standings(self) -> dict[str, Standing]:
        return {
            name: Standing(one.phase, len(one.running), one.used, one.since, one.since - one.started, woken=one.woken, held=one.held)
            for name, one in self.models.items()
        }

    def start(self, name: str) -> None:
        """Do as `prepare` does: stop the models that have to go, then load."""
        up = [
            UpModel(one, used=math.inf if there.running or there.phase == COMING else there.used)
            for one, there in self.models.items()
            if there.phase in {COMING, READY}
        ]
        for stopping in decide_room(name, up, self.settings).stops:
            there = self.models[stopping]
            if there.running and (there.held is None or self.now - there.held < GRACE):
                self.cut.append(stopping)
            self.models[stopping] = Model()
        self.models[name] = Model(COMING, started=self.now, woken=True)
        there = [one for one in self.settings.models if self.models[one.name].phase in {COMING, READY}]
        assert fit_together(there, self.settings)

    def tick(self) -> None:
        self.now += 1
        for name, one in self.models.items():
            ended = [end for end in one.running if end <= self.now]
            one.used = max([one.used, *ended])
            one.running = [end for end in one.running if end > self.now]
            if one.phase == COMING and self.now - one.started >= self.load[name]:
                one.phase, one.since, one.used, one.woken = READY, self.now, self.now, False


requests = st.lists(st.tuples(st.integers(0, 9), st.sampled_from("abc"), st.integers(1, 25)), min_size=1, max_size=60)


@settings(max_examples=150)
@given(requests=requests, needs=st.tuples(*[st.integers(2, 8)] * 3), loads=st.tuples(*[st.integers(0, 40)] * 3), pace=st.integers(1, 9))
def test_none_starves_none_is_cut_and_nothing_is_loaded_that_does_not_fit(
    requests: list[tuple[int, str, int]], needs: tuple[int, int, int], loads: tuple[int, int, int], pace: int
) -> None:
    machine_file = GatewayFile(models=tuple(model(name, need) for name, need in zip("abc", needs, strict=True)), gpus={0: 10})
    machine = Machine(machine_file, dict(zip("abc", map(float, loads), strict=True)), models={name: Model() for name in "abc"})
    arrivals: list[tuple[float, str, int]] = []
    at = 0.0
    for gap, name, seconds in requests:
        at += gap
        arrivals.append((at, name, seconds))
    waiting: dict[int, tuple[float, str, int]] = {}
    # A switch: the stay, the drain, and the load. There are two more models, each of which may be before.
    bound = 3 * (2 * max(loads) + GRACE + 3 * pace)
    number = 0
    while arrivals or waiting:
        while arrivals and arrivals[0][0] <= machine.now:
            waiting[number] = arrivals.pop(0)
            number += 1
        for _ in range(3 if machine.now % pace == 0 else 0):  # what is decided may be decided on
            asked = [WaitingRequest(ticket, name) for ticket, (_, name, _) in waiting.items()]
            moves = decide_queue(machine.now, asked, machine.standings(), machine_file)
            assert moves.refuse == {}
            for name, one in machine.models.items():
                one.held = (machine.now if one.held is None else one.held) if name in moves.hold else None
            for ticket in moves.serve:
                _, name, seconds = waiting.pop(ticket)
                assert machine.models[name].phase == READY
                machine.models[name].running.append(machine.now + seconds)
            for name in moves.wake:
                machine.start(name)
        assert machine.cut == []
        machine.tick()
        assert all(machine.now - arrived <= bound for arrived, _, _ in waiting.values()), (machine, waiting)
