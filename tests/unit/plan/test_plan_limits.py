"""Tests of what vLLM refuses whatever the memory."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from tests.truth.starts import CARDS, model_config
from vllm_safe.plan.plan_limits import find_obstacle
from vllm_safe.plan.plan_question import PlanQuestion
from vllm_safe.plan.quantization_config import Quantization
from vllm_safe.plan.serving import Card, Serving, fill_defaults


def obstacle(name: str, serving: Serving, card: Card = CARDS["RTX 3060"], cards: int = 8) -> str:
    config = model_config(name)
    question = PlanQuestion(config, serving, (card,) * cards)
    return find_obstacle(question, fill_defaults(serving, question.cards, config.max_positions))


@pytest.mark.parametrize(
    ("name", "serving", "words"),
    [
        ("llama-8b", Serving(tensor_parallel=8, pipeline_parallel=2), "16 GPUs would be needed .*, and there are 8"),
        ("qwen2.5-0.5b", Serving(tensor_parallel=4), "the 14 attention heads cannot be divided by tensor-parallel-size 4"),
        ("gemma3-1b", Serving(tensor_parallel=8), "the 4 attention heads cannot be divided"),
        ("qwen2.5-7b", Serving(tensor_parallel=7), "the 4 KV heads cannot be divided by tensor-parallel-size 7"),
        (
            "qwen2.5-72b-gptq8",
            Serving(tensor_parallel=8),
            "has 3696 inputs of a layer, which its quantisation's groups of 128 do not divide",
        ),
        ("llama-8b", Serving(max_model_len=200_000), "max-model-len 200000 exceeds the model's own 131072"),
        ("llama-8b", Serving(pipeline_parallel=2, layer_partition=(10, 20)), "has to give 2 stages 32 layers in all"),
        ("llama-8b", Serving(pipeline_parallel=2, layer_partition=(32,)), "has to give 2 stages 32 layers in all"),
        ("llama-8b-gptq4-act", Serving(), r"no longer serves GPTQ with activation order \(desc_act\)"),
        ("qwen2-7b-window", Serving(), "only some layers have a sliding window"),
        ("deepseek-v3-6-layers", Serving(pipeline_parallel=8), "pipeline-parallel-size 8 is more than the 6 layers"),
    ],
)
def test_what_is_refused(name: str, serving: Serving, words: str) -> None:
    found = obstacle(name, serving)
    assert re.search(words, found), found


@pytest.mark.parametrize(
    ("name", "serving"),
    [
        ("qwen2.5-72b-instruct-gptq8", Serving(tensor_parallel=8)),
        ("qwen2.5-7b", Serving(tensor_parallel=4)),
        ("llama-8b", Serving(max_model_len=200_000, unplanned=("hf-overrides",))),
        ("llama-8b", Serving(max_model_len=200_000, any_length=True)),
        ("gpt-oss-20b", Serving(tensor_parallel=8)),
        ("qwen3-30b-a3b-gptq4", Serving(tensor_parallel=4)),  # 192 inputs, groups of 128: vLLM halves them
        ("llama-8b-gptq4-act", Serving(version=(0, 31))),
        ("llama-8b", Serving(tensor_parallel=4, pipeline_parallel=2)),
    ],
)
def test_what_is_not(name: str, serving: Serving) -> None:
    assert obstacle(name, serving) == ""


def test_old_cards() -> None:
    turing = replace(CARDS["RTX 3060"], capability=(7, 5))
    assert "half would do" in obstacle("llama-8b", Serving(dtype="bfloat16"), turing)
    assert obstacle("llama-8b", Serving(dtype="half"), turing) == ""
    volta = replace(turing, capability=(7, 0))
    assert "awq needs compute capability 7.5, and a GPU has 7.0" in obstacle("llama-70b-awq", Serving(), volta)
    assert obstacle("qwen2.5-72b-gptq8", Serving(), volta) == ""  # by the kernels of Exllama
    unknown = replace(model_config("llama-8b"), quantization=Quantization("bitsandbytes"))
    assert find_obstacle(PlanQuestion(unknown, Serving(), (volta,)), fill_defaults(Serving(), (volta,), 8192)) == ""


def test_a_gpu_that_is_not_used_is_no_obstacle() -> None:
    cards = (CARDS["RTX 3060"], replace(CARDS["RTX 3060"], capability=(6, 1)))
    asked = PlanQuestion(model_config("llama-8b-fp8"), Serving(dtype="bfloat16"), cards)
    assert find_obstacle(asked, fill_defaults(asked.serving, cards, 8192)) == ""
    both = replace(asked, serving=Serving(dtype="bfloat16", tensor_parallel=2))
    assert "bfloat16 needs" in find_obstacle(both, fill_defaults(both.serving, cards, 8192))


def test_the_length_that_an_older_vllm_made_of_yarn() -> None:
    yarn = replace(model_config("qwen2.5-7b"), rotary_positions=131072)
    for version, refused in (((0, 31), False), ((0, 32), True)):
        serving = Serving(version=version, max_model_len=131072)
        asked = PlanQuestion(yarn, serving, (CARDS["RTX 3060"],))
        assert bool(find_obstacle(asked, fill_defaults(serving, asked.cards, 32768))) is refused
