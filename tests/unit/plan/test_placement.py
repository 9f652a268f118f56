"""Tests of where weights end up: split, repeated, padded, fused and repacked."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.truth.starts import model_config
from vllm_safe.common.sizes import MIB
from vllm_safe.plan.placement import place_weights, split_layers
from vllm_safe.plan.serving import Serving
from vllm_safe.plan.tensors import Tensor, list_tensors

HOPPER = (9, 0)


def placed(name: str, serving: Serving, capability: tuple[int, int] = HOPPER) -> tuple[int, ...]:
    config = model_config(name)
    return place_weights(config, list_tensors(config), serving, capability)


def one(tensor: Tensor, name: str = "llama-8b", capability: tuple[int, int] = HOPPER, **serving: object) -> int:
    """Return the bytes of one tensor on the first card, without what every card has."""
    config = model_config(name)
    chosen = Serving(**serving)  # type: ignore[arg-type] # names of its own fields
    return place_weights(config, [tensor], chosen, capability)[0] - place_weights(config, [], chosen, capability)[0]


@pytest.mark.parametrize(
    ("layers", "stages", "counts"),
    [(80, 4, [20, 20, 20, 20]), (28, 8, [3, 3, 3, 4, 4, 4, 4, 3]), (5, 2, [3, 2]), (62, 4, [15, 16, 16, 15])],
)
def test_layers_of_a_pipeline(layers: int, stages: int, counts: list[int]) -> None:
    assert [len(stage) for stage in split_layers(layers, Serving(pipeline_parallel=stages))] == counts


def test_layers_as_they_were_asked_for() -> None:
    assert split_layers(10, Serving(pipeline_parallel=2, layer_partition=(3, 7))) == (range(3), range(3, 10))


@pytest.mark.parametrize(
    ("name", "shape", "split", "size"),
    [
        ("model.layers.0.self_attn.q_proj.weight", (4096, 4096), 4, 4096 * 1024 * 2),
        ("model.layers.0.self_attn.k_proj.weight", (1024, 4096), 16, 128 * 4096 * 2),  # 8 KV heads on 16 ranks: each has one
        ("model.layers.0.self_attn.o_proj.weight", (4096, 4096), 4, 4096 * 1024 * 2),
        ("model.layers.0.mlp.down_proj.bias", (4096,), 4, 4096 * 2),
        ("model.layers.0.mlp.gate_proj.bias", (4096,), 4, 1024 * 2),
        ("model.layers.0.input_layernorm.weight", (4096,), 4, 4096 * 2),
        ("lm_head.weight", (1001, 64), 4, 256 * 64 * 2),  # the vocabulary is padded to 1024
        ("model.layers.0.self_attn.rotary_emb.inv_freq", (64,), 1, 0),
        ("model.layers.32.mlp.up_proj.weight", (4096, 4096), 1, 0),  # of multi-token prediction: after the last layer
    ],
)
def test_a_tensor_on_one_rank(name: str, shape: tuple[int, ...], split: int, size: int) -> None:
    assert one(Tensor(name, shape, "BF16"), tensor_parallel=split) == size


def test_a_type_that_vllm_does_not_serve_becomes_that_of_the_model() -> None:
    assert one(Tensor("model.layers.0.input_layernorm.weight", (4096,), "F32")) == 4096 * 2


def test_experts_are_split_or_shared_out() -> None:
    tensor = Tensor("model.layers.0.mlp.experts.*.gate_proj.weight", (768, 2048), "BF16", 128)
    whole = 128 * 768 * 2048 * 2
    assert one(tensor, "qwen3-30b-a3b", tensor_parallel=4) == whole // 4
    assert one(tensor, "qwen3-30b-a3b", tensor_parallel=4, expert_parallel=True) == whole // 4
    assert one(replace(tensor, dtype="F8_E4M3"), "qwen3-30b-a3b-fp8", tensor_parallel=8) == 128 * 128 * 2048  # 96 is padded to 128


def test_the_zero_points_of_a_symmetric_quantisation_are_dropped() -> None:
    tensor = Tensor("model.layers.0.mlp.down_proj.qzeros", (224, 512), "I32")
    packed = 224 * 512 * 4
    assert (one(tensor, "llama-8b-gptq4-act", (8, 6)), one(tensor, "llama-70b-awq", (8, 6))) == (0, packed)


def test_machete_keeps_zero_points_as_it_finds_them_or_as_numbers() -> None:
    tensor = Tensor("model.layers.0.mlp.down_proj.qzeros", (224, 512), "I32")
    packed = 224 * 512 * 4
    assert (one(tensor, "llama-8b-gptq4-act"), one(tensor, "llama-70b-awq")) == (packed, 4 * packed)


def test_scales_of_one_row_are_repeated() -> None:
    column = Tensor("model.layers.0.mlp.gate_proj.weight_scale", (14336, 1), "BF16")
    row = Tensor("model.layers.0.mlp.down_proj.weight_scale", (4096, 1), "BF16")
    assert [one(tensor, "llama-8b-fp8", tensor_parallel=4) for tensor in (column, row)] == [3584 * 4, 4096 * 4]


def test_scales_of_blocks_are_spread_out_where_marlin_has_to_do_it() -> None:
    tensor = Tensor("model.layers.0.mlp.gate_proj.weight_scale_inv", (96, 32), "F32")
    assert (one(tensor, "qwen3-8b-fp8"), one(tensor, "qwen3-8b-fp8", (8, 6))) == (12288, 12288 * 32 * 2)


def test_the_output_layer_of_a_quantised_latent_attention_is_held_twice() -> None:
    tensor = Tensor("model.layers.0.self_attn.kv_b_proj.weight", (32768, 512), "F8_E4M3")
    assert one(tensor, "deepseek-v3-6-layers") == 16 * MIB + 32 * MIB
    assert one(replace(tensor, dtype="BF16"), "deepseek-v2-lite") == 32 * MIB


def test_tied_embeddings_are_once_on_a_card_and_on_both_ends_of_a_pipeline() -> None:
    whole = placed("qwen2.5-0.5b", Serving())[0]
    first, last = placed("qwen2.5-0.5b", Serving(pipeline_parallel=2))
    assert first + last - whole == pytest.approx(151936 * 896 * 2, rel=0.05)


def test_the_ends_of_a_pipeline_have_embedding_and_output_layer() -> None:
    sizes = placed("llama-70b-awq", Serving(pipeline_parallel=4))
    assert sizes[0] == pytest.approx(sizes[3], rel=0.01)
    assert sizes[0] - sizes[1] == pytest.approx(128256 * 8192 * 2, rel=0.01)


def test_some_models_have_both_on_each_stage() -> None:
    whole, stages = placed("qwen3-30b-a3b", Serving())[0], placed("qwen3-30b-a3b", Serving(pipeline_parallel=2))
    assert sum(stages) - whole == pytest.approx(2 * 151936 * 2048 * 2, rel=0.01)


def test_a_scaled_table_of_sines_has_more_rows() -> None:
    config = model_config("gemma3-12b")
    assert place_weights(config, [], Serving(), HOPPER)[0] == (8 + 1) * 131072 * 256 * 2


def test_two_ranks_of_each_stage() -> None:
    assert len(placed("llama-8b", Serving(tensor_parallel=2, pipeline_parallel=2))) == 4


def test_mxfp4_is_padded_as_the_kernel_wants() -> None:
    hopper, ampere = placed("gpt-oss-20b", Serving())[0], placed("gpt-oss-20b", Serving(), (8, 6))[0]
    more = 24 * 32 * 3 * (3072 * 2944 - 2880**2) * 17 / 32  # half a byte of each value, and a byte for 32
    assert ampere - hopper == pytest.approx(more, rel=0.1)


def test_what_torch_rounds_up() -> None:
    small = [Tensor("model.layers.0.input_layernorm.weight", (1,), "BF16")]
    config = model_config("llama-8b")
    base = place_weights(config, [], Serving(), HOPPER)[0]
    assert place_weights(config, small, Serving(), HOPPER)[0] - base == 512
    assert one(Tensor("model.layers.0.self_attn.o_proj.weight", (3584, 3584), "BF16")) == 26 * MIB  # of 24.5
