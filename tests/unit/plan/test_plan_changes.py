"""Tests of the smallest change that makes a model start, and of the largest context."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from tests.truth.starts import CARDS, model_config
from vllm_safe.plan import plan_changes, plan_split
from vllm_safe.plan.plan_changes import decide_changes, decide_fit, describe_change
from vllm_safe.plan.plan_decision import decide_plan
from vllm_safe.plan.plan_question import Plan, PlanChange, PlanQuestion
from vllm_safe.plan.serving import Card, Serving, read_serving

RTX = CARDS["RTX 3060"]
ADA = replace(RTX, capability=(8, 9), memory=16 << 30)
BIG = "qwen2.5-72b-instruct-gptq8"


def question(name: str, cards: tuple[Card, ...] = (RTX,), **serving: object) -> PlanQuestion:
    return PlanQuestion(model_config(name), Serving(**serving), cards)


def changed(asked: PlanQuestion, change: PlanChange) -> PlanQuestion:
    """Return the question with the options of a change, as a person would set them."""
    args = {"max-model-len": asked.serving.max_model_len, "max-num-seqs": asked.serving.max_num_seqs, **dict(change.args)}
    typed = {
        key: int(value) if str(value).isdigit() else value == "true" if value in {"true", "false"} else value for key, value in args.items()
    }
    order = dict(change.env).get("CUDA_VISIBLE_DEVICES", "")
    cards = tuple(asked.cards[int(number)] for number in order.split(",")) if order else asked.cards
    return replace(asked, cards=cards, serving=read_serving(typed, dict(change.env)))


def names(changes: tuple[PlanChange, ...]) -> list[list[str]]:
    return [[name for name, _ in change.args] for change in changes]


def test_each_kind_in_the_order_in_which_a_user_would_choose() -> None:
    found = decide_changes(question("llama-8b-w4a16", max_num_seqs=16))
    assert names(found)[0] == ["max-model-len"]
    assert names(decide_changes(question("qwen2.5-7b", (ADA,)))) == [["quantization"], ["tensor-parallel-size"]]


@pytest.mark.parametrize(
    "asked",
    [
        question("llama-8b-w4a16", max_num_seqs=16),
        question("qwen2.5-7b", (ADA,)),
        question("llama-8b-w4a16", (ADA,) * 2, max_model_len=131072),
        question("phi4-14b", (ADA,), max_model_len=16384),
        question(BIG, (RTX,) * 8),
        question("llama-8b", (RTX,) * 2),
    ],
    ids=lambda asked: asked.config.architecture,
)
def test_a_model_starts_with_each_change(asked: PlanQuestion) -> None:
    found = decide_changes(asked)
    assert found
    for change in found:
        cards = asked.cards * 16 if "GPUs of" in change.cost else asked.cards
        assert decide_plan(replace(changed(asked, change), cards=cards)).starts is True, change


def test_the_change_is_the_smallest() -> None:
    asked = question("llama-8b-w4a16", max_model_len=decide_plan(question("llama-8b-w4a16")).sure_context + 500)
    change = next(change for change in decide_changes(asked) if change.args[0][0] == "gpu-memory-utilization")
    share = float(change.args[0][1])
    assert decide_plan(replace(asked, serving=replace(asked.serving, gpu_memory_utilization=share - 0.01))).starts is not True


def test_nothing_is_changed_where_it_starts() -> None:
    assert decide_changes(question("qwen2.5-0.5b")) == ()


def test_nothing_helps() -> None:
    assert decide_changes(question("mixtral-8x7b", (replace(RTX, memory=1 << 30),))) == ()
    assert decide_fit(question("mixtral-8x7b")) is None


def test_several_changes_together_where_no_one_does() -> None:
    found, cards = decide_changes(question(BIG, (RTX,) * 8))
    assert cards.cost == "12 GPUs of 11.8 GiB"
    assert {"tensor-parallel-size", "max-model-len", "max-num-seqs"} <= {name for name, _ in found.args}


@pytest.mark.parametrize(
    "asked",
    [
        question("llama-8b-w4a16"),
        question("llama-8b-w4a16", max_num_seqs=16),
        question(BIG, (RTX,) * 8, tensor_parallel=8),
        question("llama-8b", (RTX, replace(RTX, memory=24 << 30))),
    ],
    ids=lambda asked: f"{asked.config.architecture}-{len(asked.cards)}",
)
def test_the_largest_context_starts_and_ten_percent_more_is_not_promised(asked: PlanQuestion) -> None:
    fit = decide_fit(asked)
    assert fit
    length = int(dict(fit.args)["max-model-len"])
    kept = replace(changed(asked, fit).serving, tensor_parallel=asked.serving.tensor_parallel) if asked.serving.ranks > 1 else None
    chosen = replace(changed(asked, fit), serving=kept or changed(asked, fit).serving)
    assert decide_plan(chosen).starts is True
    assert decide_plan(replace(chosen, serving=replace(chosen.serving, max_model_len=int(length * 1.1)))).starts is not True


def test_a_model_that_fits_whole_keeps_everything() -> None:
    fit = decide_fit(question("qwen2.5-0.5b"))
    assert fit == PlanChange((("max-model-len", "32768"),), (), "up to 32,768 tokens")


def test_a_share_that_is_not_free_is_lowered() -> None:
    fit = decide_fit(question("qwen2.5-0.5b", (replace(RTX, used=2 << 30),)))
    assert fit
    assert dict(fit.args)["gpu-memory-utilization"] == "0.8"


def test_an_order_of_the_cards() -> None:
    old = question("llama-8b", (RTX, ADA, RTX), pipeline_parallel=3)
    new = replace(old, cards=(RTX, RTX, ADA), serving=replace(old.serving, layer_partition=(8, 9, 15), enforce_eager=True))
    assert describe_change(old, new, "x") == PlanChange(
        (("enforce-eager", "true"),), (("VLLM_PP_LAYER_PARTITION", "8,9,15"), ("CUDA_VISIBLE_DEVICES", "0,2,1")), "x"
    )


@pytest.mark.parametrize("cards", [(RTX,), (RTX, ADA) * 4, (RTX,) * 64])
def test_a_config_of_two_thousand_layers_is_not_tried_in_every_way(cards: tuple[Card, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each way to split it takes as long as the plans of thirty models."""
    asked = question(BIG, cards)
    asked = replace(asked, config=replace(asked.config, layers=2000, windows=(0,) * 2000))
    tried = []

    def decide(each: PlanQuestion) -> Plan:
        tried.append(each)
        return decide_plan(each)

    for module in (plan_changes, plan_split):
        monkeypatch.setattr(module, "decide_plan", decide)
    decide_changes(asked)
    decide_fit(asked)
    split = {(one.serving.tensor_parallel, one.serving.pipeline_parallel, one.serving.layer_partition) for one in tried}
    assert len(tried) <= 60
    assert len(split) <= 8


def test_all_of_it_takes_less_than_a_second() -> None:
    begun = time.process_time()
    decide_changes(question(BIG, (RTX,) * 8))
    decide_fit(question(BIG, (RTX,) * 8))
    assert time.process_time() - begun < 1
