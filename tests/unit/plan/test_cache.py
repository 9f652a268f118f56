"""Tests of the KV cache's layout."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.truth.starts import model_config
from vllm_safe.plan.cache import CacheLayout, lay_out
from vllm_safe.plan.serving import Batch, Serving

BATCH = Batch(8192, 64, 2048, 0.9)


def layout(name: str, serving: Serving | None = None, capability: tuple[int, int] = (9, 0)) -> CacheLayout:
    return lay_out(model_config(name), serving or Serving(), BATCH, capability)


@pytest.mark.parametrize(
    ("name", "serving", "size"),
    [
        ("qwen2.5-7b", Serving(), 4 * 2 * 128 * 2),
        ("qwen2.5-7b", Serving(tensor_parallel=2), 2 * 2 * 128 * 2),
        ("qwen2.5-7b", Serving(tensor_parallel=28), 2 * 128 * 2),  # a rank has one head at least
        ("qwen2.5-7b", Serving(kv_cache_dtype="fp8"), 4 * 2 * 128),
        ("deepseek-v2-lite", Serving(tensor_parallel=2), 576 * 2),  # every rank has the whole vector
        ("deepseek-v2-lite", Serving(kv_cache_dtype="fp8_ds_mla"), 656),
    ],
)
def test_bytes_of_a_token(name: str, serving: Serving, size: int) -> None:
    assert layout(name, serving).token_bytes == size


def test_full_attention_is_one_group() -> None:
    cache = layout("qwen2.5-7b")
    assert (len(cache.groups), cache.block_bytes, cache.request_blocks(8192)) == (1, (28 * 2048 * 16,), 512)


def test_the_rank_with_fewest_blocks_decides() -> None:
    cache = layout("qwen2.5-7b", Serving(pipeline_parallel=2, layer_partition=(10, 18)))
    assert cache.block_bytes == (10 * 2048 * 16, 18 * 2048 * 16)
    assert cache.blocks((10**9, 10**9)) == 10**9 // (18 * 2048 * 16)
    assert cache.blocks((-1, 10**9)) == 0


def test_the_figure_that_vllm_prints() -> None:
    cache = layout("qwen2.5-7b")
    assert cache.tokens(1000, 8192) == 16000


@pytest.mark.parametrize(
    ("name", "groups"),
    [
        ("gemma2-9b", [(0, 21), (4096, 21)]),
        ("gemma3-1b", [(0, 4), (512, 4), (512, 4), (512, 4), (512, 4), (512, 3), (512, 3)]),
        ("gpt-oss-20b", [(0, 12), (128, 12)]),
        ("mistral-7b-sliding", [(4096, 32)]),
    ],
)
def test_groups_of_a_hybrid(name: str, groups: list[tuple[int, int]]) -> None:
    assert sorted((group.window, len(group.layers)) for group in layout(name).groups) == sorted(groups)


def test_kinds_of_about_the_same_number_are_padded_to_the_larger() -> None:
    config = replace(model_config("llama-8b"), layers=25, windows=(0,) * 13 + (128,) * 12)
    assert [len(group.layers) for group in lay_out(config, Serving(), BATCH, (9, 0)).groups] == [13, 12]


def test_a_window_holds_what_may_be_in_flight() -> None:
    cache = layout("mistral-7b-sliding")
    assert cache.in_flight == 4096
    assert cache.request_blocks(32768) == (4095 + 4096 + 15) // 16 + 1
    assert cache.request_blocks(100) == 7 + 1


def test_the_longest_request_leaves_one_block() -> None:
    cache = layout("qwen2.5-7b")
    assert (cache.longest(101, 8192), cache.longest(1, 8192), cache.longest(0, 8192), cache.longest(10**6, 8192)) == (1600, 0, 0, 8192)


def test_blocks_of_other_sizes() -> None:
    assert layout("deepseek-v2-lite", capability=(10, 0)).block_size == 32
    assert layout("llama-8b", Serving(block_size=64)).block_size == 64
