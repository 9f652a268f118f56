"""Which models must stop so that another one fits. Pure, standard library only: both the gateway and `prepare` use it.

A model that a person started is pinned: it is never stopped for another one. A model that a request started stays at least as long as its
load took, so that two models that are requested in turn do not spend their time loading.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import NamedTuple

from vllm_safe.common.sizes import format_size
from vllm_safe.contract.gateway_file import GatewayFile, GatewayModel

_FEW = 12  # models; with more than that, not every choice is compared: the least recently used ones stop until there is room


class UpModel(NamedTuple):
    """A model that is up: it serves, loads or stops. Times are from one clock, which the caller chooses.

    used: its last request, math.inf while it answers one. stays: it is not stopped before, math.inf while it loads.
    """

    name: str
    pinned: bool = False
    used: float = 0.0
    stays: float = 0.0


class RoomPlan(NamedTuple):
    """How room is made. stops: the models that must stop, () if there is room; due: the earliest time for that.

    obstacle: why there can be no room, in one line, or ""; holders: the models that a person has to stop then.
    """

    stops: tuple[str, ...] = ()
    due: float = 0.0
    obstacle: str = ""
    holders: tuple[str, ...] = ()


class Shortage(NamedTuple):
    """The memory that several models together do not have. gpu: the number of the GPU, None for RAM; has: its size in bytes."""

    gpu: int | None
    has: int

    @property
    def name(self) -> str:
        """The memory that is short, in words."""
        return "RAM" if self.gpu is None else f"GPU {self.gpu}"

    def part(self, model: GatewayModel) -> int:
        """Return the bytes that a model needs of it."""
        return model.memory if self.gpu is None else model.needs.get(self.gpu, 0)


def find_shortage(models: Iterable[GatewayModel], machine: GatewayFile) -> Shortage | None:
    """Return the memory that is too small for all of the models together, or None if they fit.

    A model alone lacks nothing here: whether it fits on the machine is checked before its start, with more facts.
    """
    there = tuple(models)
    every = [*(Shortage(number, has) for number, has in sorted(machine.gpus.items())), Shortage(None, machine.memory)]
    for one in every:
        parts = [part for model in there if (part := one.part(model))]
        if len(parts) > 1 and sum(parts) > one.has:
            return one
    return None


def fit_together(models: Iterable[GatewayModel], machine: GatewayFile) -> bool:
    """Return whether these models can be up together."""
    return find_shortage(models, machine) is None


def decide_room(wanted: str, up: Sequence[UpModel], machine: GatewayFile) -> RoomPlan:
    """Decide which of the models that are `up` have to stop for `wanted`: as few as possible, the least recently used first.

    A model that is up but no longer in the configuration counts as one that needs all memory.
    """
    asked = _known(wanted, machine)
    others = [model for model in up if model.name != wanted]
    pinned = [model for model in others if model.pinned]
    kept = [_known(model.name, machine) for model in pinned]
    if lacks := find_shortage([asked, *kept], machine):
        return _obstructed(asked, kept, lacks, machine)
    free = sorted((model for model in others if not model.pinned), key=lambda model: (model.used, model.name))
    stops = _fewest(asked, kept, free, machine) if len(free) <= _FEW else _oldest(asked, kept, free, machine)
    return RoomPlan(tuple(model.name for model in stops), max((model.stays for model in stops), default=0.0))


def _fewest(asked: GatewayModel, kept: list[GatewayModel], free: list[UpModel], machine: GatewayFile) -> tuple[UpModel, ...]:
    """Return the smallest choice that makes room. `combinations` yields those of the least recently used models first."""
    for count in range(len(free) + 1):
        for stops in combinations(free, count):
            stay = [_known(model.name, machine) for model in free if model not in stops]
            if fit_together([asked, *kept, *stay], machine):
                return stops
    return tuple(free)


def _oldest(asked: GatewayModel, kept: list[GatewayModel], free: list[UpModel], machine: GatewayFile) -> tuple[UpModel, ...]:
    """Return the least recently used models that make room by stopping, except those that turn out to fit after all."""
    stops: list[UpModel] = []
    stay = list(free)
    while stay and not fit_together([asked, *kept, *(_known(model.name, machine) for model in stay)], machine):
        stops.append(stay.pop(0))
    for model in reversed(stops[:]):
        if fit_together([asked, *kept, *(_known(one.name, machine) for one in (*stay, model))], machine):
            stops.remove(model)
            stay.append(model)
    return tuple(stops)


def _obstructed(asked: GatewayModel, kept: list[GatewayModel], lacks: Shortage, machine: GatewayFile) -> RoomPlan:
    """Return the plan for pinned models that leave no room. It names only the models whose stop would help."""
    one_is_enough = [model for model in kept if fit_together([asked, *(other for other in kept if other is not model)], machine)]
    holders = one_is_enough or [model for model in kept if lacks.part(model)]
    amounts = " and ".join(f"{model.name} has {format_size(lacks.part(model))}" for model in holders)
    by_hand = "which was started by hand" if len(holders) == 1 else "which were started by hand"
    what = f"there is no room for {asked.name}, which needs {format_size(lacks.part(asked))} of {lacks.name}"
    return RoomPlan(
        obstacle=f"{what}: of {format_size(lacks.has)}, {amounts}, {by_hand}",
        holders=tuple(model.name for model in holders),
    )


def _known(name: str, machine: GatewayFile) -> GatewayModel:
    """Return a model of the configuration. A model that is not in it counts as one that needs all memory."""
    return machine.model(name) or GatewayModel(name, (name,), "", ("", 0), needs=machine.gpus, memory=machine.memory)
