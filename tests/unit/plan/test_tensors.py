"""Tests of the tensors that a family's files have."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from tests.truth.starts import model_config
from vllm_safe.common.errors import Failure
from vllm_safe.plan.quantization_config import Quantization
from vllm_safe.plan.tensors import Tensor, list_tensors


@pytest.mark.parametrize(
    ("name", "values"),
    [  # the numbers of parameters that the makers of the models give
        ("llama-8b", 8_030_261_248),
        ("qwen2.5-7b", 7_615_616_512),
        ("qwen2.5-0.5b", 494_032_768),
        ("qwen3-8b", 8_190_735_360),
        ("qwen3-0.6b", 596_049_920),
        ("qwen3-30b-a3b", 30_532_122_624),
        ("gemma2-9b", 9_241_705_984),
        ("gemma3-1b", 999_885_952),
        ("phi4-14b", 14_659_507_200),
        ("mixtral-8x7b", 46_702_792_704),
        ("mistral-7b", 7_248_023_552),
        ("deepseek-v2-lite", 15_706_484_224),
        ("glm4-9b", 9_400_279_040),
    ],
)
def test_as_many_values_as_the_model_has_parameters(name: str, values: int) -> None:
    assert sum(tensor.size for tensor in list_tensors(model_config(name))) == 2 * values


def test_experts_are_one_entry() -> None:
    tensors = {tensor.name: tensor for tensor in list_tensors(model_config("qwen3-30b-a3b"))}
    assert tensors["model.layers.5.mlp.experts.*.gate_proj.weight"] == Tensor(
        "model.layers.5.mlp.experts.*.gate_proj.weight", (768, 2048), "BF16", 128
    )


@pytest.mark.parametrize(
    ("name", "module", "parts"),
    [
        ("llama-70b-awq", "mlp.down_proj", {"qweight": (28672, 1024), "qzeros": (224, 1024), "scales": (224, 8192)}),
        (
            "qwen2.5-72b-gptq8",
            "self_attn.k_proj",
            {"qweight": (2048, 1024), "qzeros": (64, 256), "scales": (64, 1024), "g_idx": (8192,), "bias": (1024,)},
        ),
        ("qwen3-8b-fp8", "mlp.up_proj", {"weight": (12288, 4096), "weight_scale_inv": (96, 32)}),
        ("llama-8b-fp8", "self_attn.o_proj", {"weight": (4096, 4096), "weight_scale": (4096, 1)}),
        ("llama-8b-w4a16", "mlp.gate_proj", {"weight_packed": (14336, 512), "weight_shape": (2,), "weight_scale": (14336, 32)}),
        (
            "gpt-oss-20b",
            "mlp.experts",
            {
                "gate_up_proj_blocks": (32, 5760, 90, 16),
                "gate_up_proj_scales": (32, 5760, 90),
                "gate_up_proj_bias": (32, 5760),
                "down_proj_blocks": (32, 2880, 90, 16),
                "down_proj_scales": (32, 2880, 90),
                "down_proj_bias": (32, 2880),
            },
        ),
    ],
)
def test_the_parts_of_a_quantised_layer(name: str, module: str, parts: dict[str, tuple[int, ...]]) -> None:
    base = f"model.layers.0.{module}."
    assert {
        tensor.name.removeprefix(base): tensor.shape for tensor in list_tensors(model_config(name)) if tensor.name.startswith(base)
    } == parts


def test_what_is_skipped_or_the_head_is_plain() -> None:
    tensors = {tensor.name: tensor for tensor in list_tensors(model_config("qwen3-30b-a3b-gptq4"))}
    assert {tensors[f"{name}.weight"].dtype for name in ("lm_head", "model.layers.0.mlp.gate")} == {"BF16"}
    config = model_config("llama-8b-w4a16")
    skipping = replace(config, quantization=replace(config.quantization or Quantization(""), skipped=("model.layers.0",)))
    named = {tensor.name for tensor in list_tensors(skipping)}
    assert {"model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight_packed"} <= named


def test_what_is_not_known() -> None:
    with pytest.raises(Failure, match="the tensors of New are not known"):
        list_tensors(replace(model_config("llama-8b"), family="", architecture="New"))
    with pytest.raises(Failure, match="the tensors of LlamaForCausalLM are not known"):
        list_tensors(replace(model_config("llama-8b"), quantization=Quantization("brand_new")))


def test_the_largest_model_that_a_file_may_claim_takes_less_than_a_second() -> None:
    begun = time.process_time()
    config = model_config("qwen3-30b-a3b-gptq4")
    assert config.experts
    huge = replace(config, layers=2000, experts=replace(config.experts, count=60_000, layers=frozenset(range(2000))))
    assert len(list_tensors(huge)) > 10_000
    assert time.process_time() - begun < 1
