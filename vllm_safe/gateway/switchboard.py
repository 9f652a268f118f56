"""The queue of the requests: it carries out the decisions of queue_decision.py about waiting requests and models."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable
from http import HTTPStatus

from vllm_safe.contract.gateway_file import GatewayFile, GatewayModel
from vllm_safe.gateway.model_watch import ModelWatch
from vllm_safe.gateway.openai_errors import Refused
from vllm_safe.gateway.queue_decision import DOWN, FAILED, GOING, READY, QueueMoves, Standing, WaitingRequest, decide_queue
from vllm_safe.gateway.wake_socket import WakeSocket

LOOK_EVERY = 0.25  # seconds between two looks at the states, while a request waits
_UNKNOWN_LOAD = 60.0  # seconds after which a client may try again, where nothing is known


class Ticket:
    """A request's place. turn: done when it is served; its exception is Refused."""

    def __init__(self, number: int, model: GatewayModel, turn: asyncio.Future[None]) -> None:
        self.number, self.model, self.turn = number, model, turn
        self.served = False


class Switchboard:
    """All requests that wait or are passed on."""

    def __init__(self, settings: GatewayFile, watch: ModelWatch, wake: Callable[[str], WakeSocket] = WakeSocket) -> None:
        self.settings, self.watch, self._wake = settings, watch, wake
        self._numbers = itertools.count(1)
        self._waiting: dict[int, Ticket] = {}
        self._in_flight: dict[str, int] = {}
        self._used: dict[str, float] = {}
        self._held: dict[str, float] = {}  # by model: since when its new requests wait
        self._woken: dict[str, WakeSocket] = {}
        self._doubted: dict[str, float] = {}  # by model: when it refused a connection in spite of its state
        self._moves = QueueMoves()
        self._timer: asyncio.TimerHandle | None = None
        self.switches = 0

    def enter(self, model: GatewayModel) -> Ticket:
        """Take a place in the queue. The caller must `leave` it."""
        ticket = Ticket(next(self._numbers), model, asyncio.get_running_loop().create_future())
        if not self._waiting and not self._held and self._phase(model.name) == READY:
            self._serve(ticket)
        else:
            self._waiting[ticket.number] = ticket
            self._review()
        return ticket

    def leave(self, ticket: Ticket) -> None:
        """Give the place up, served or not."""
        if ticket.served:
            name = ticket.model.name
            self._in_flight[name] -= 1
            self._used[name] = time.time()
            ticket.served = False
            if name in self._held:
                self._review()
        elif self._waiting.pop(ticket.number, None):
            ticket.turn.cancel()
            self._review()

    def doubt(self, name: str) -> None:
        """Record that a model refuses connections. Its state is outdated until a newer one is written."""
        self._doubted[name] = time.time()

    def configure(self, settings: GatewayFile) -> None:
        """Use other settings from now on. Requests for a removed model are refused."""
        self.settings = settings
        for ticket in list(self._waiting.values()):
            if settings.model(ticket.model.name) is None:
                self._refuse(ticket, Refused(HTTPStatus.NOT_FOUND, f"{ticket.model.name} was taken out of the configuration"))
        self._review()

    def close(self, refused: Refused) -> None:
        """Refuse all waiting requests, and start no more models."""
        for ticket in list(self._waiting.values()):
            self._refuse(ticket, refused)
        for socket in self._woken.values():
            socket.close()
        self._woken.clear()
        self._review()

    def was_stopped(self, name: str, since: float) -> bool:
        """Return whether somebody stopped the model since then, and it did not end by itself."""
        state = self.watch.look(name)
        return not state.crashed and (state.phase != READY or state.ready > since)

    def phase(self, name: str) -> str:
        """Return the phase of a model."""
        return self._phase(name)

    def counts(self) -> tuple[dict[str, int], dict[str, int]]:
        """Return the numbers of running and of waiting requests, by model."""
        waiting: dict[str, int] = {}
        for ticket in self._waiting.values():
            waiting[ticket.model.name] = waiting.get(ticket.model.name, 0) + 1
        return self._in_flight, waiting

    def news(self, model: GatewayModel) -> str:
        """Return the text for a waiting client."""
        state = self.watch.look(model.name)
        if others := self._moves.waits_for.get(model.name):
            return f"{model.name} waits for {' and '.join(others)} to make room"
        return f"{model.name}: {state.text}" if state.text and state.phase not in (DOWN, FAILED) else f"{model.name} is being started"

    def patience(self, model: GatewayModel) -> float:
        """Return after how many seconds a client may try again."""
        left = self.watch.look(model.name).left
        return left if left is not None else self.watch.last_load(model.name) or _UNKNOWN_LOAD

    # --- steps

    def _phase(self, name: str) -> str:
        state = self.watch.look(name)
        if state.phase == FAILED and state.refused and self._has_stopped_since(state.written):
            return DOWN
        doubted = self._doubted.get(name)
        if doubted is None:
            return state.phase
        if state.written > doubted:
            del self._doubted[name]
            return state.phase
        return DOWN if state.phase == READY else state.phase

    def _has_stopped_since(self, moment: float) -> bool:
        states = [self.watch.look(model.name) for model in self.settings.models]
        return any(state.phase == DOWN and state.written > moment for state in states)

    def _standing(self, name: str) -> Standing:
        state, phase, socket = self.watch.look(name), self._phase(name), self._woken.get(name)
        problem = state.problem
        if socket is not None and phase == DOWN and state.written > socket.opened:
            # The model was stopped before its turn came: the request waits for another start.
            self._woken.pop(name).close()
            socket = None
        if socket is not None and phase == FAILED and state.written < socket.opened:
            phase = DOWN  # the state is that of the previous start
        if socket is not None and phase == DOWN and socket.problem:
            phase, problem = FAILED, f"systemd did not start {name} ({socket.problem}). See: systemctl status vllm@{name}"
            self.watch.note_failure(name, problem)
        return Standing(
            phase=phase,
            in_flight=self._in_flight.get(name, 0),
            used=max(self._used.get(name, 0.0), state.used),
            ready=state.ready,
            load=state.load,
            pinned=state.pinned,
            woken=socket is not None,
            held=self._held.get(name),
            problem=problem,
        )

    def _review(self) -> None:
        """Decide, and act."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now = time.time()
        standings = {model.name: self._standing(model.name) for model in self.settings.models}
        waiting = [WaitingRequest(ticket.number, ticket.model.name) for ticket in self._waiting.values()]
        moves = self._moves = decide_queue(now, waiting, standings, self.settings)
        self._held = {name: self._held.get(name, now) for name in moves.hold}
        for number in moves.serve:
            self._serve(self._waiting.pop(number))
        for name in moves.wake:
            self._open(name)
        for ticket in list(self._waiting.values()):
            if reason := moves.refuse.get(ticket.model.name):
                self._refuse(ticket, Refused(HTTPStatus.SERVICE_UNAVAILABLE, reason, code="model_unavailable"))
        for name, socket in list(self._woken.items()):
            if name not in standings or standings[name].phase in (READY, FAILED):
                socket.close()
                del self._woken[name]
        if self._waiting or self._woken:
            delay = min(max(moves.again - now, 0.01), LOOK_EVERY)
            self._timer = asyncio.get_running_loop().call_later(delay, self._review)

    def _open(self, name: str) -> None:
        model = self.settings.model(name)
        if model is not None and name not in self._woken:
            self._woken[name] = self._wake(model.socket)
            self.switches += bool(self._held)

    def _serve(self, ticket: Ticket) -> None:
        ticket.served = True
        name = ticket.model.name
        self._in_flight[name] = self._in_flight.get(name, 0) + 1
        if not ticket.turn.done():
            ticket.turn.set_result(None)

    def _refuse(self, ticket: Ticket, refused: Refused) -> None:
        del self._waiting[ticket.number]
        if not ticket.turn.done():
            ticket.turn.set_exception(refused)
            ticket.turn.exception()  # mark it as retrieved: the client may be gone


def public_state(phase: str) -> str:
    """Return the word for a phase in /v1/models."""
    return {DOWN: "stopped", FAILED: "failed", READY: "ready", GOING: "stopping"}.get(phase, "loading")
