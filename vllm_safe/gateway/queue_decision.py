"""Which waiting requests are served now, which models are woken, and which ones must wait for that. Pure.

Requests are served in the order of their arrival. One switch is under way at a time: the one for the first request that needs one.

1. A model that must stop stays for at least as long as its load took, and serves new requests meanwhile.
2. Then it is held: its new requests wait behind the switch, and running ones have `stop_grace` to end.
3. Then the requested model is woken. `prepare` stops the others, by the same rule (room/room_decision.py).

So no request waits longer than the models before it need. A model that fits beside all others is woken at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from vllm_safe.contract.gateway_file import GatewayFile
from vllm_safe.room.room_decision import RoomPlan, UpModel, decide_room

DOWN, COMING, READY, GOING, FAILED = "down", "coming", "ready", "going", "failed"


class Standing(NamedTuple):
    """The state of a model, as far as the queue needs it. Times are in Unix seconds."""

    phase: str = DOWN
    in_flight: int = 0  # requests that the gateway passes on
    used: float = 0.0  # the last one ended
    ready: float = 0.0  # it became ready
    load: float = 0.0  # seconds that its load took
    pinned: bool = False  # a person started it
    woken: bool = False  # its socket is open, because a request waits for it
    held: float | None = None  # new requests wait since then, since it has to go
    problem: str = ""  # the reason why its last start failed


class WaitingRequest(NamedTuple):
    """A request that has not had its turn."""

    ticket: int
    model: str


class QueueMoves(NamedTuple):
    """The moves to make now. again: the time to decide again unless something happens before; math.inf: not needed."""

    serve: tuple[int, ...] = ()
    hold: frozenset[str] = frozenset()
    wake: tuple[str, ...] = ()
    refuse: Mapping[str, str] = {}  # by model: the reason
    waits_for: Mapping[str, tuple[str, ...]] = {}  # by model: those that have to go first
    again: float = math.inf


def decide_queue(now: float, waiting: Sequence[WaitingRequest], standings: Mapping[str, Standing], machine: GatewayFile) -> QueueMoves:
    """Decide for all waiting requests, given in the order of their arrival."""
    turn = _Round(now, standings, machine)
    for request in waiting:
        turn.decide(request)
    return QueueMoves(tuple(turn.serve), frozenset(turn.hold), tuple(turn.wake), turn.refuse, turn.waits_for, turn.again)


class _Round:
    """One decision, request by request."""

    def __init__(self, now: float, standings: Mapping[str, Standing], machine: GatewayFile) -> None:
        self._now, self._standings, self._machine = now, standings, machine
        self._up = [_as_up(name, standing, now) for name, standing in standings.items() if _is_up(standing)]
        self._decided: set[str] = set()  # models that do not run
        self._served: set[str] = set()  # models that get a request now
        self.serve: list[int] = []
        self.wake: list[str] = []
        self.refuse: dict[str, str] = {}
        self.waits_for: dict[str, tuple[str, ...]] = {}
        self.again = math.inf
        # A model that was woken but has not begun to load still needs the others to stop.
        woken = [name for name, standing in standings.items() if standing.woken and standing.phase in (DOWN, GOING)]
        self.hold = {stopping for name in woken for stopping in decide_room(name, self._up, machine).stops if self._is_ready(stopping)}
        self._switching = bool(self.hold)

    def decide(self, request: WaitingRequest) -> None:
        """Decide for the next request. One that comes before the first that needs its model gone is still served."""
        name = request.model
        if self._is_ready(name):
            if name not in self.hold:
                self.serve.append(request.ticket)
                self._served.add(name)
                self._up = [model._replace(used=self._now) if model.name == name else model for model in self._up]
        elif name not in self._decided:
            self._decided.add(name)
            self._decide_model(name)

    def _decide_model(self, name: str) -> None:
        """Decide for the first request for a model that does not run."""
        standing, model = self._standings.get(name, Standing()), self._machine.model(name)
        if standing.phase == FAILED:
            self.refuse[name] = standing.problem
        elif standing.phase == COMING or standing.woken:
            return
        elif model is None or not model.socket:
            self.refuse[name] = f"{name} does not run, and no request starts it. Start it: systemctl start vllm@{name}"
        elif (room := decide_room(name, self._up, self._machine)).obstacle:
            self.refuse[name] = room.obstacle
        else:
            if not room.stops:
                self.wake.append(name)
            elif not self._switching:
                self._switch(name, room)
            # No later request may take the room that this one waits for.
            self._up.append(UpModel(name, used=math.inf, stays=math.inf))
            if room.stops:
                self.waits_for[name] = room.stops

    def _switch(self, name: str, room: RoomPlan) -> None:
        """Go on with the switch to this model: the others have stayed for long enough, are held, and are empty or had `stop_grace`."""
        self._switching = True
        if self._now < room.due:
            self.again = room.due
            return
        self.hold.update(room.stops)
        empty = max(self._empty_at(stopping) for stopping in room.stops)
        if self._now < empty:
            self.again = empty
        else:
            self.wake.append(name)

    def _empty_at(self, name: str) -> float:
        """Return when a model that is held may go: now, if it has no running requests, else after `stop_grace`."""
        standing, model = self._standings[name], self._machine.model(name)
        if not standing.in_flight and name not in self._served:
            return self._now
        return (self._now if standing.held is None else standing.held) + (model.stop_grace if model else 0.0)

    def _is_ready(self, name: str) -> bool:
        return name in self._standings and self._standings[name].phase == READY


def _is_up(standing: Standing) -> bool:
    return standing.phase in (COMING, READY) or (standing.woken and standing.phase != FAILED)


def _as_up(name: str, standing: Standing, now: float) -> UpModel:
    """Return a model as the decision about room sees it. One that is held already goes first: a switch goes on as it began."""
    if standing.phase != READY:
        return UpModel(name, standing.pinned, math.inf, math.inf)
    used = -math.inf if standing.held is not None else now if standing.in_flight else standing.used
    return UpModel(name, standing.pinned, used, standing.ready + standing.load)
