"""Making room for a model before its start: other models that a request started drain and stop, all at the same time.

Several starts may be prepared at once. Each decides while it holds a lock, and keeps it until its launch file is there: from then on the
others see it, and leave it its place.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from vllm_safe.apply.unit_steps import StopUnits
from vllm_safe.common.errors import Failure, Misuse
from vllm_safe.common.file_steps import RemoveFile, WriteFile
from vllm_safe.common.notify import notify
from vllm_safe.common.run_lock import hold_lock
from vllm_safe.common.sizes import format_span
from vllm_safe.contract.gateway_file import GatewayFile
from vllm_safe.contract.room_note import room_note
from vllm_safe.decide.demand_decision import decide_request, decide_up, is_up_already
from vllm_safe.decide.limits import unit_of
from vllm_safe.host.demand_facts import DemandFacts, read_demand_facts
from vllm_safe.room.room_decision import RoomPlan, decide_room

_LOCK = "room"
_LOOK_EVERY = 1.0  # seconds
_MOST_REFUSED = 20  # stops one after the other
_MORE_TIME = 300.0  # seconds, by which systemd's timeout of the unit is extended at each look


class NoRoom(Misuse):
    """The requested model does not fit beside the models that persons started."""


@dataclass(frozen=True)
class MakeRoom:
    """Stop the models that must stop for the model `name`, once they may, and wait. Keep the lock in `held` once there is room.

    A start by a person does not wait until the other models have had their time. It is tried even if there is no room beside models that
    other persons started.
    """

    name: str
    machine: GatewayFile
    held: ExitStack
    read: Callable[[], DemandFacts] = read_demand_facts
    notes: Callable[[str], Path] = room_note

    def describe(self) -> str:
        """Return the step as one line of text."""
        facts = self.read()
        plan = _decide(self.name, self.machine, facts)
        if plan.obstacle:
            return f"refuse the start: {plan.obstacle}"
        if not plan.stops:
            return f"stop no other model for {self.name}: there is room"
        wait = plan.due - facts.now
        when = " when it has loaded" if math.isinf(wait) else f" in {format_span(wait)}" if wait > 0 else ""
        return f"stop {' and '.join(map(unit_of, plan.stops))}{when}, to make room for {self.name}"

    def run(self) -> None:
        """Make room. Raises NoRoom, and Failure if systemd refuses to stop a model again and again."""
        refused = 0
        while True:
            with ExitStack() as lock:
                lock.enter_context(hold_lock(_LOCK, lambda: None))
                facts = self.read()
                plan = _decide(self.name, self.machine, facts)
                if not facts.model(self.name).job:
                    return  # the start was cancelled, or a person runs `apply NAME` only to set the limits
                if plan.obstacle:
                    raise NoRoom(plan.obstacle, hint=f"Run: systemctl stop {' '.join(map(unit_of, plan.holders))}")
                if not plan.stops:
                    self.held.enter_context(lock.pop_all())
                    return
            notify(STATUS=_waits_for(plan, facts.now), EXTEND_TIMEOUT_USEC=str(int(_MORE_TIME * 1e6)))
            if plan.due > facts.now:
                time.sleep(min(_LOOK_EVERY, plan.due - facts.now))
                continue
            names = " and ".join(plan.stops)
            notify(STATUS=f"stopping {names}, whose running requests are answered first", EXTEND_TIMEOUT_USEC=_drain(self.machine, plan))
            try:
                self._stop(plan.stops)
            except Failure:
                # A client has asked for one of them meanwhile: its start has taken the place of this stop in systemd's queue.
                refused += 1
                if refused > _MOST_REFUSED:
                    raise
                time.sleep(_LOOK_EVERY)

    def _stop(self, names: tuple[str, ...]) -> None:
        """Stop the models at once. Each main process records the model that needs the room, for `why`."""
        notes = [self.notes(name) for name in names]
        try:
            for note in notes:
                WriteFile(note, self.name).run()
            StopUnits(tuple(map(unit_of, names))).run()
        finally:
            for note in notes:
                RemoveFile(note).run()


def room_steps(name: str, machine: GatewayFile, held: ExitStack) -> tuple[MakeRoom, ...]:
    """Return the step that makes room for `name`, none where no model is on demand or it is up already. held: keeps the lock."""
    if not any(model.on_demand for model in machine.models) or is_up_already(read_demand_facts(), name):
        return ()
    return (MakeRoom(name, machine, held),)


def _decide(name: str, machine: GatewayFile, facts: DemandFacts) -> RoomPlan:
    up = decide_up(facts, name)
    plan = decide_room(name, up, machine)
    if decide_request(facts, name):
        return plan
    if plan.obstacle:  # the start is tried nevertheless, as if the models that persons started were not there
        plan = decide_room(name, [model for model in up if not model.pinned], machine)
    return plan._replace(due=0.0)


def _waits_for(plan: RoomPlan, now: float) -> str:
    names = " and ".join(plan.stops)
    if math.isinf(plan.due):
        return f"waiting until {names} has loaded: a model is not stopped before"
    left = format_span(max(1.0, plan.due - now))
    return f"waiting {left} for {names} to have been up for as long as its load took, then it makes room"


def _drain(machine: GatewayFile, plan: RoomPlan) -> str:
    """Return the microseconds that systemd has to allow for the stops."""
    graces = [model.stop_grace for name in plan.stops if (model := machine.model(name))]
    return str(int((_MORE_TIME + max(graces, default=0.0)) * 1e6))
