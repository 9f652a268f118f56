"""Ways to spread a model over GPUs, some of which may have more memory than others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

from vllm_safe.plan.memory import CardBudget
from vllm_safe.plan.plan_decision import decide_plan
from vllm_safe.plan.plan_question import Plan, PlanQuestion
from vllm_safe.plan.serving import Card

_MOST_CARDS = 64
_MOST_LAYERS = 4000  # layers to place, over all ways to split a model: known models have at most 126 layers


def decide_split(question: PlanQuestion) -> tuple[PlanQuestion, ...]:
    """Return the ways to use all GPUs with which the model can start, the one with the longest context first.

    Tensor parallel gives each card the same: on unlike cards that of the smallest. Pipeline parallel gives a card as many layers as it
    has room for, with `layer_partition` and an order of the cards. Of two with the same context the one with tensor parallel is first,
    since it is faster. Of a model with far more layers than any known one, only the first few ways are tried.
    """
    found: list[tuple[int, int, PlanQuestion]] = []
    for candidate in islice(_splits(question), count_tries(question)):
        plan = decide_plan(candidate)
        if plan.starts:
            found.append((-plan.sure_context, candidate.serving.pipeline_parallel, candidate))
    return tuple(candidate for _, _, candidate in sorted(found, key=lambda row: row[:2]))


def count_tries(question: PlanQuestion) -> int:
    """Return how many ways to split a model are tried. Each places all of its layers, and a hostile config.json may claim thousands."""
    return max(2, _MOST_LAYERS // question.config.layers)


def _splits(question: PlanQuestion) -> Iterator[PlanQuestion]:
    count = min(len(question.cards), _MOST_CARDS)
    for stages in range(1, count + 1):
        if count % stages == 0:
            serving = replace(question.serving, tensor_parallel=count // stages, pipeline_parallel=stages, layer_partition=())
            even = replace(question, serving=serving)
            yield even
            if stages > 1 and len({card.memory for card in question.cards}) > 1:
                for cards in _orders(question.cards):
                    yield from _uneven(replace(even, cards=cards))


def _orders(cards: tuple[Card, ...]) -> Iterator[tuple[Card, ...]]:
    """Return orders worth trying: the first and the last stage have the embedding and the output layer beside their layers."""
    falling = tuple(sorted(cards, key=lambda card: -card.memory))
    seen = [cards]
    yield cards
    for order in (falling, falling[::-1], (falling[0], *falling[2:], falling[1]) if len(falling) > 2 else falling):
        if order not in seen:
            seen.append(order)
            yield order


def _uneven(question: PlanQuestion) -> Iterator[PlanQuestion]:
    """Return the question with as many layers on each stage as its GPUs hold."""
    plan = decide_plan(question)
    if not plan.budgets:
        return
    partition = _partition(question, plan)
    if partition:
        yield replace(question, serving=replace(question.serving, layer_partition=partition))


def _partition(question: PlanQuestion, plan: Plan) -> tuple[int, ...]:
    """Return the layers of each stage with which the largest KV cache fits on all of them."""
    stages, split = question.serving.pipeline_parallel, question.serving.tensor_parallel
    layers = question.config.layers
    by_stage = [plan.budgets[stage * split : (stage + 1) * split] for stage in range(stages)]
    # With all stages alike, the middle ones have only layers; the first also has the embedding, and the last the output layer.
    each = _layer_bytes(question, plan)
    counts = [layers // stages + (1 if stages - 1 - layers % stages <= stage < stages - 1 else 0) for stage in range(stages)]
    fixed = [
        max(0, budgets[0].weights - counts[stage] * each) + max(budget.estimated for budget in budgets)
        for stage, budgets in enumerate(by_stage)
    ]
    room = [min(budget.requested for budget in budgets) - fixed[stage] for stage, budgets in enumerate(by_stage)]
    if each <= 0 or min(room) < each:
        return ()
    low, high = 0.0, float(max(room))  # bytes of KV cache of one layer
    for _ in range(60):
        middle = (low + high) / 2
        held = sum(int(size // (each + middle)) for size in room)
        low, high = (middle, high) if held >= layers else (low, middle)
    found = [int(size // (each + low)) for size in room]
    while sum(found) > layers:  # more than needed: take one from the stage with the least memory left
        fullest = min(range(stages), key=lambda stage: room[stage] / found[stage] if found[stage] > 1 else float("inf"))
        found[fullest] -= 1
    return tuple(found) if sum(found) == layers and min(found) > 0 else ()


def _layer_bytes(question: PlanQuestion, plan: Plan) -> float:
    """Return the bytes of a layer on one rank: those of all stages without the embedding and the output layer."""
    config, split = question.config, question.serving.tensor_parallel
    stages: list[CardBudget] = list(plan.budgets[::split])
    vocabulary = config.vocab * config.hidden * config.item_size / split
    return (sum(budget.weights for budget in stages) - 2 * vocabulary) / config.layers
