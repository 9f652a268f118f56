"""What a model asks of a card, from its config.json and the options of `vllm serve`."""

from __future__ import annotations

from typing import Any

import pytest

from vllm_safe.check.model_needs import ModelNeeds, needs_of

FLOAT8 = {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": {"num_bits": 8, "type": "float"}}}}
INT4 = {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": {"num_bits": 4, "type": "int"}}}}


@pytest.mark.parametrize(
    ("config", "arguments", "needs"),
    [
        ({"torch_dtype": "bfloat16", "model_type": "llama"}, {}, ModelNeeds("bfloat16", kind="llama")),
        ({"dtype": "bfloat16"}, {"dtype": "auto"}, ModelNeeds("bfloat16")),  # what transformers 5 writes
        ({"torch_dtype": "bfloat16"}, {"dtype": "half"}, ModelNeeds("float16", chosen=True)),
        ({"text_config": {"torch_dtype": "bfloat16"}, "model_type": "gemma3"}, {}, ModelNeeds("bfloat16", kind="gemma3")),
        ({"quantization_config": {"quant_method": "gptq"}}, {}, ModelNeeds(quantisation="gptq")),
        ({"quantization_config": {"quant_method": "gptq"}}, {"quantization": "gptq_marlin"}, ModelNeeds(quantisation="gptq")),
        ({"quantization_config": {"quant_method": "fp8"}}, {}, ModelNeeds(quantisation="fp8", float8=True)),
        ({"quantization_config": FLOAT8}, {}, ModelNeeds(quantisation="compressed-tensors", float8=True)),
        ({"quantization_config": INT4}, {}, ModelNeeds(quantisation="compressed-tensors")),
        ({}, {"quantization": "fp8"}, ModelNeeds(quantisation="fp8", float8=True)),
        ({"torch_dtype": "x" * 1000}, {}, ModelNeeds("x" * 40)),
    ],
)
def test_needs(config: object, arguments: dict[str, Any], needs: ModelNeeds) -> None:
    assert needs_of(config, arguments) == needs


@pytest.mark.parametrize(
    "config",
    [
        None,
        [],
        3,
        {"quantization_config": 3},
        {"text_config": []},
        {"quantization_config": {"quant_method": None}},
        {"quantization_config": {"quant_method": "compressed-tensors", "config_groups": [1]}},
        {"quantization_config": {"quant_method": "compressed-tensors", "config_groups": {"a": 1, "b": {"weights": 2}}}},
    ],
)
def test_a_damaged_config_asks_for_nothing_known(config: object) -> None:
    found = needs_of(config, {})
    assert (found.dtype, found.float8) == ("", False)
