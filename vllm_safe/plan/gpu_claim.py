"""The memory that a model takes of each GPU while it is up. vLLM takes the same amount under any load."""

from __future__ import annotations

import math

from vllm_safe.plan.memory import outside_bytes
from vllm_safe.plan.plan_decision import decide_plan
from vllm_safe.plan.plan_facts import PlanFacts
from vllm_safe.plan.serving import fill_defaults


def claimed_bytes(facts: PlanFacts) -> tuple[int, ...]:
    """Return the bytes that a model takes of each GPU of its workers, in the order in which its server sees the GPUs."""
    question, serving = facts.question, facts.serving
    cards = question.cards[: serving.ranks]
    share = fill_defaults(serving, cards, question.config.max_positions).gpu_memory_utilization
    wanted = [math.ceil(card.memory * share) for card in cards]
    if serving.kv_cache_memory and len(budgets := decide_plan(question).budgets) == len(cards):
        wanted = [budget.weights + budget.estimated + serving.kv_cache_memory for budget in budgets]
    return tuple(min(card.memory, size + outside_bytes(serving, card)) for card, size in zip(cards, wanted, strict=True))
