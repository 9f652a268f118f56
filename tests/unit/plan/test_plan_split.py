"""Tests of spreading a model over cards that are not alike."""

from __future__ import annotations

from dataclasses import replace

from tests.truth.starts import CARDS, model_config
from vllm_safe.common.sizes import GIB
from vllm_safe.plan.plan_decision import decide_plan
from vllm_safe.plan.plan_question import PlanQuestion
from vllm_safe.plan.plan_split import decide_split
from vllm_safe.plan.serving import Serving

SMALL, LARGE = CARDS["RTX 3060"], replace(CARDS["RTX 3060"], memory=24 * GIB)


def test_alike_cards_are_split_by_tensors() -> None:
    best = decide_split(PlanQuestion(model_config("qwen3-8b-fp8"), Serving(max_model_len=-1), (SMALL, SMALL)))[0]
    assert (best.serving.tensor_parallel, best.serving.pipeline_parallel, best.serving.layer_partition) == (2, 1, ())


def test_unlike_cards_by_layers_and_the_larger_one_has_more() -> None:
    asked = PlanQuestion(model_config("llama-8b"), Serving(max_model_len=-1), (SMALL, LARGE))
    found = decide_split(asked)
    best = found[0]
    layers = dict(zip(best.cards, best.serving.layer_partition, strict=True))
    assert sum(layers.values()) == 32
    assert layers[LARGE] > 2 * layers[SMALL]
    tensors = next(way for way in found if way.serving.tensor_parallel == 2)
    assert decide_plan(best).longest_context > 2 * decide_plan(tensors).longest_context


def test_no_way_is_left_out_that_starts() -> None:
    assert decide_split(PlanQuestion(model_config("mixtral-8x7b"), Serving(max_model_len=-1), (SMALL, LARGE))) == ()


def test_three_unlike_cards_in_another_order() -> None:
    asked = PlanQuestion(model_config("phi4-14b"), Serving(max_model_len=-1), (SMALL, LARGE, SMALL))
    best = decide_split(asked)[0]
    assert sum(best.serving.layer_partition) == 40
    assert sorted(card.memory for card in best.cards) == sorted(card.memory for card in asked.cards)
    assert decide_plan(best).starts is not False
