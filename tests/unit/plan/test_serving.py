"""Tests of vLLM's arguments and its defaults for them."""

from __future__ import annotations

from typing import Any

import pytest

from tests.truth.starts import CARDS
from vllm_safe.common.errors import Misuse
from vllm_safe.common.sizes import GIB
from vllm_safe.plan.serving import Batch, Card, Serving, fill_defaults, read_serving


def test_settings_of_a_model() -> None:
    args = {
        "tensor-parallel-size": 4,
        "pipeline-parallel-size": 2,
        "max-model-len": "8k",
        "gpu-memory-utilization": 0.85,
        "enforce-eager": True,
    }
    expected = Serving(tensor_parallel=4, pipeline_parallel=2, layer_partition=(30, 50), max_model_len=8000, gpu_memory_utilization=0.85)
    found = read_serving(args, {"VLLM_PP_LAYER_PARTITION": "30,50"})
    assert (found.ranks, found) == (8, Serving(**{**vars(expected), "enforce_eager": True}))


@pytest.mark.parametrize(("text", "length"), [("8k", 8000), ("8K", 8192), ("1.5K", 1536), (4096, 4096), ("auto", -1), (-1, -1)])
def test_lengths_as_vllm_reads_them(text: object, length: int) -> None:
    assert read_serving({"max-model-len": text}).max_model_len == length


@pytest.mark.parametrize(
    ("args", "named"),
    [
        ({"tensor-parallel-size": 0}, "tensor-parallel-size"),
        ({"tensor-parallel-size": "two"}, "tensor-parallel-size"),
        ({"max-num-seqs": True}, "max-num-seqs"),
        ({"max-num-seqs": 1 << 40}, "max-num-seqs"),
        ({"gpu-memory-utilization": 1.5}, "gpu-memory-utilization"),
        ({"gpu-memory-utilization": [1]}, "gpu-memory-utilization"),
        ({"gpu-memory-utilization": float("nan")}, "gpu-memory-utilization"),
    ],
)
def test_a_value_that_cannot_be(args: dict[str, Any], named: str) -> None:
    with pytest.raises(Misuse, match=f"^{named} is not ") as caught:
        read_serving(args)
    assert caught.value.hint


def test_a_partition_that_cannot_be() -> None:
    with pytest.raises(Misuse, match="VLLM_PP_LAYER_PARTITION"):
        read_serving({}, {"VLLM_PP_LAYER_PARTITION": "1,x"})


def test_options_that_are_not_computed_are_named() -> None:
    args = {"speculative-config": {"model": "x"}, "enable-lora": True, "cpu-offload-gb": 0, "data-parallel-size": 1, "enable-dbo": False}
    assert read_serving(args).unplanned == ("speculative-config", "enable-lora")


@pytest.mark.parametrize(
    ("card", "seqs", "tokens"),
    [
        (CARDS["RTX 3060"], 256, 2048),
        (CARDS["H200"], 1024, 8192),
        (Card(80 * GIB, (8, 0), name="NVIDIA A100-SXM4-80GB"), 256, 2048),
        (Card(179 * GIB, (10, 0)), 1024, 16384),
    ],
)
def test_defaults_depend_on_the_card(card: Card, seqs: int, tokens: int) -> None:
    assert fill_defaults(Serving(), (card,), 32768) == Batch(32768, seqs, tokens, 0.92)


def test_what_is_set_is_kept() -> None:
    serving = Serving(max_model_len=512, max_num_seqs=2, gpu_memory_utilization=0.5)
    assert fill_defaults(serving, (CARDS["H200"],), 32768) == Batch(512, 2, 1024, 0.5)
    assert fill_defaults(Serving(max_num_batched_tokens=100), (CARDS["H200"],), 32768).max_num_seqs == 100
