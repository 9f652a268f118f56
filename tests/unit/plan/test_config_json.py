"""Tests of reading config.json, which anybody can have written."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.truth.starts import model_config
from vllm_safe.common.errors import Failure
from vllm_safe.plan.config_json import parse_model_config
from vllm_safe.plan.model_config import FAMILIES
from vllm_safe.plan.quantization_config import SkippedModules

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "torch_dtype": "bfloat16",
}


def test_a_plain_model() -> None:
    config = parse_model_config(LLAMA)
    assert (config.family, config.layers, config.kv_heads, config.head_dim, config.tied, config.dtype) == (
        "llama",
        32,
        8,
        128,
        False,
        "bfloat16",
    )
    assert (config.windows, config.unknown) == ((0,) * 32, ())


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"num_hidden_layers": 10**12}, "num_hidden_layers"),
        ({"num_hidden_layers": "32"}, "num_hidden_layers"),
        ({"num_hidden_layers": True}, "num_hidden_layers"),
        ({"hidden_size": float("nan")}, "hidden_size"),
        ({"vocab_size": -1}, "vocab_size"),
        ({"vocab_size": None}, "vocab_size"),
        ({"architectures": []}, "architectures"),
        ({"architectures": ["\x1b[31mX"]}, "architectures"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
        ({"max_position_embeddings": 1e9}, "max_position_embeddings"),
        ({"layer_types": ["full_attention"]}, "layer_types"),
        ({"quantization_config": "gptq"}, "quantization_config"),
        ({"quantization_config": {"quant_method": 8}}, "quantization_config.quant_method"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 5}}, "quantization_config.bits"),
        ({"quantization_config": {"quant_method": "gptq", "group_size": 10**30}}, "quantization_config.group_size"),
        ({"quantization_config": {"quant_method": "fp8", "weight_block_size": [0, 128]}}, "quantization_config.weight_block_size"),
        (
            {"quantization_config": {"quant_method": "awq", "modules_to_not_convert": ["x"] * 10_001}},
            "quantization_config.modules_to_not_convert",
        ),
        ({"quantization_config": {"quant_method": "compressed-tensors", "config_groups": {}}}, "quantization_config.config_groups"),
    ],
)
def test_a_value_that_cannot_be_is_named_with_its_file(change: dict[str, Any], key: str) -> None:
    with pytest.raises(Failure, match=rf"^/m/config\.json: {key} is not ") as caught:
        parse_model_config(LLAMA | change, "/m/config.json")
    assert caught.value.hint


def test_a_file_that_holds_a_list() -> None:
    with pytest.raises(Failure, match="holds no JSON object"):
        parse_model_config([])


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3)
)


@given(
    st.dictionaries(
        st.sampled_from([*LLAMA, "sliding_window", "layer_types", "rope_scaling", "num_experts", "kv_lora_rank", "head_dim"]), VALUES
    )
)
def test_whatever_it_holds_it_is_a_model_or_a_failure(change: dict[str, Any]) -> None:
    try:
        config = parse_model_config(LLAMA | change)
    except Failure:
        return
    assert len(config.windows) == config.layers


def test_what_is_not_known_is_said() -> None:
    strange = {
        "architectures": ["NewForCausalLM"],
        "torch_dtype": "float6",
        "layer_types": ["linear_attention"] * 32,
        "quantization_config": {"quant_method": "brand_new"},
    }
    config = parse_model_config(LLAMA | strange)
    assert config.unknown == ("architecture NewForCausalLM", "dtype float6", "layers of kind linear_attention", "quantisation brand_new")


def test_the_language_model_of_a_multimodal_one() -> None:
    outer = {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "torch_dtype": "bfloat16"}
    inner = {"model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34, "sliding_window": 1024}
    config = parse_model_config(outer | {"text_config": inner})
    assert (config.heads, config.kv_heads, config.head_dim, config.vocab, config.tied) == (
        8,
        4,
        256,
        262208,
        True,
    )  # transformers' defaults
    assert (config.windows.count(1024), config.windows.count(0)) == (29, 5)
    assert (config.multimodal, config.unknown) == (True, ())


@pytest.mark.parametrize(
    ("name", "windows"),
    [
        ("gemma2-9b", {4096: 21, 0: 21}),
        ("gemma3-1b", {512: 22, 0: 4}),
        ("gpt-oss-20b", {128: 12, 0: 12}),
        ("mistral-7b-sliding", {4096: 32}),
        ("mistral-7b", {0: 32}),
        ("qwen2.5-7b", {0: 28}),
    ],
)
def test_windows(name: str, windows: dict[int, int]) -> None:
    config = model_config(name)
    assert {window: config.windows.count(window) for window in config.windows} == windows


def test_experts_and_latent_attention() -> None:
    config = model_config("deepseek-v3-6-layers")
    assert config.experts is not None
    assert config.latent is not None
    assert (config.experts.count, config.experts.shared_intermediate, sorted(config.experts.layers)) == (256, 2048, [3, 4, 5])
    assert (config.latent.q_rank, config.latent.kv_rank, config.latent.rope_dim) == (1536, 512, 64)
    lite = model_config("deepseek-v2-lite").latent
    assert lite is not None
    assert lite.q_rank == 0


@pytest.mark.parametrize(
    ("scaling", "length"),
    [
        ({"type": "linear", "factor": 4}, 32768),
        ({"rope_type": "yarn", "factor": 4}, 8192),  # max_position_embeddings has it already
        ({"rope_type": "llama3", "factor": 8}, 8192),
        ({"type": "linear", "factor": float("inf")}, 8192),
        (None, 8192),
    ],
)
def test_the_longest_context(scaling: object, length: int) -> None:
    assert parse_model_config(LLAMA | {"rope_scaling": scaling}).max_positions == length


@pytest.mark.parametrize(
    ("pattern", "module", "left"),
    [
        ("lm_head", "lm_head", True),
        ("mlp.gate", "model.layers.3.mlp.gate", True),
        ("mlp.gate", "model.layers.3.mlp.gate_proj", False),
        ("model.layers.3", "model.layers.3.mlp.gate_proj", True),
        ("model.layers.3", "model.layers.33.mlp.gate_proj", False),
        ("model.layers.*.self_attn", "model.layers.7.self_attn.q_proj", True),
        ("re:.*lm_head", "lm_head", True),
        (r"re:.*mlp\.gate$", "model.layers.3.mlp.gate", True),
        (r"re:.*mlp\.gate$", "model.layers.3.mlp.gate_proj", False),
        ("re:vision_tower.*", "model.layers.3.mlp.gate_proj", False),
    ],
)
def test_modules_that_are_left_out(pattern: str, module: str, *, left: bool) -> None:
    values = LLAMA | {"quantization_config": {"quant_method": "awq", "modules_to_not_convert": [pattern]}}
    assert SkippedModules(parse_model_config(values).quantization).has(module) is left


def test_a_pattern_of_a_hostile_file_takes_no_time() -> None:
    names = [f"model.layers.{number}.x" for number in range(9_800)] + ["re:(a+)+$" + "a" * 400] * 200
    config = parse_model_config(LLAMA | {"quantization_config": {"quant_method": "awq", "modules_to_not_convert": names}})
    skipped, begun = SkippedModules(config.quantization), time.process_time()
    assert not any(skipped.has(f"model.layers.{layer}.mlp.gate_proj") for layer in range(500))
    assert time.process_time() - begun < 1


def test_every_known_architecture_has_a_model_in_the_table() -> None:
    named = {"gemma", "qwen3_moe", "glm4_moe", "deepseek"}
    assert {"llama", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "mixtral", "gpt_oss", "glm4"} | named == set(FAMILIES.values())


def test_it_is_read_as_json_has_it() -> None:
    assert parse_model_config(json.loads(json.dumps(LLAMA))) == parse_model_config(LLAMA)
