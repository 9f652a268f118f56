"""The decision about the gateway's settings: the addresses of the models, and the GPU memory and RAM that each needs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from vllm_safe.common.kernfs import MODELS_SLICE
from vllm_safe.config.settings import Config
from vllm_safe.contract.gateway_file import GatewayFile, GatewayModel, demand_socket
from vllm_safe.decide.limits import Budget, unit_of
from vllm_safe.decide.node_options import find_rank
from vllm_safe.decide.plan_inputs import host_limits
from vllm_safe.decide.serve_command import ServerCommand
from vllm_safe.decide.server_address import reachable_host
from vllm_safe.driver.card_facts import NvmlCard
from vllm_safe.driver.visible_devices import visible_numbers
from vllm_safe.host.host_facts import Host
from vllm_safe.plan.gpu_claim import claimed_bytes
from vllm_safe.plan.host_needs import decide_host_needs
from vllm_safe.plan.plan_facts import PlanFacts

_SHARE = 0.92  # vllm/config/cache.py:102, gpu_memory_utilization
_MODELS = unit_of("")[: -len(".service")]  # the beginning of the names of their units


@dataclass(frozen=True)
class Claimant:
    """The facts about the needs of one model. plan: None if its files or its GPUs are not known."""

    server: ServerCommand
    plan: PlanFacts | None = None


@dataclass(frozen=True)
class GatewayFacts:
    """The facts about the machine, and about each model by its name. cards: the GPUs."""

    host: Host
    budget: Budget
    cards: tuple[NvmlCard, ...]
    claimants: Mapping[str, Claimant]


def decide_gateway(config: Config, facts: GatewayFacts) -> GatewayFile:
    """Decide the settings of the gateway."""
    section = config.gateway
    return GatewayFile(
        host=section.host,
        port=section.port,
        wait=section.wait,
        models=tuple(_model(config, facts, name) for name in config.models),
        gpus={number: _left(card) for number, card in enumerate(facts.cards)},
        memory=facts.budget.units[MODELS_SLICE]["MemoryMax"],
        enabled=section.enabled,
    )


def _left(card: NvmlCard) -> int:
    """Return the memory of a GPU that is left for models by the driver and by other programs."""
    others = sum(process.memory for process in card.processes if not process.unit.startswith(_MODELS))
    return max(0, card.memory - card.reserved - others)


def _model(config: Config, facts: GatewayFacts, name: str) -> GatewayModel:
    model, claimant, limits = config.models[name], facts.claimants[name], facts.budget.of(name)
    memory = limits.memory_max.value
    if plan := claimant.plan:
        needs = decide_host_needs(plan.serving, host_limits(limits, facts.host), forked=plan.forked, past=plan.past, machines=plan.machines)
        memory = min(memory, needs.memory)
    return GatewayModel(
        name=name,
        served=served_names(name, claimant.server),
        socket=demand_socket(name) if model.on_demand else "",
        address=(reachable_host(model), model.server_port),
        on_demand=model.on_demand,
        idle_timeout=model.idle_timeout if model.on_demand else None,
        stop_grace=float(claimant.server.timeouts["stop_grace"].value),
        needs=dict(_gpu_needs(claimant, facts.cards)),
        memory=memory,
        first=model.nodes[0] if model.nodes and find_rank(model, facts.host.name) else "",
    )


def served_names(name: str, server: ServerCommand) -> tuple[str, ...]:
    """Return the names under which its server serves the model `name`. A server other than vLLM is expected to use that name."""
    served = server.arguments.get("served-model-name")
    if served is None:
        return (name,)
    return tuple(map(str, served.value if isinstance(served.value, list) else [served.value]))


def _gpu_needs(claimant: Claimant, cards: tuple[NvmlCard, ...]) -> Iterator[tuple[int, int]]:
    """Yield the number of each GPU that a model uses, with the bytes that it needs there: the plan's, or else those of its arguments."""
    seen = _visible_positions(claimant.server, cards)
    if plan := claimant.plan:
        claims = claimed_bytes(plan)
        if plan.unordered and claims:  # it may use any of them
            yield from ((number, max(claims)) for number in seen)
        else:
            yield from zip(seen, claims, strict=False)
        return
    arguments = claimant.server.arguments
    if not arguments:  # the needs of another server are not known: it may use all GPUs that it sees
        yield from ((number, cards[number].memory) for number in seen)
        return
    share = arguments.get("gpu-memory-utilization")
    part = share.value if share and isinstance(share.value, int | float) else _SHARE
    for number in seen[: claimant.server.world_size or None]:
        yield number, math.ceil(cards[number].memory * part)


def _visible_positions(server: ServerCommand, cards: tuple[NvmlCard, ...]) -> tuple[int, ...]:
    """Return the numbers of the GPUs that a server sees, in its order. A GPU without memory does not respond, and is left out."""
    there = tuple(number for number, card in enumerate(cards) if card.memory)
    variable = server.environment.get("CUDA_VISIBLE_DEVICES")
    numbers = visible_numbers(variable.value if variable else None)
    return there if numbers is None else tuple(number for number in numbers if number in there)  # by UUID, it may see any of them
