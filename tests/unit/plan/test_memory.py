"""Tests of what a card holds beside the weights."""

from __future__ import annotations

import pytest

from tests.truth.starts import CARDS, model_config
from vllm_safe.plan.memory import CardBudget, Rank, budget_card, capture_sizes, outside_bytes
from vllm_safe.plan.serving import Batch, Serving

BATCH = Batch(8192, 64, 2048, 0.9)
EAGER = Serving(enforce_eager=True)


def budget(name: str, batch: Batch = BATCH, serving: Serving = EAGER, *, first: bool = True, last: bool = True) -> CardBudget:
    return budget_card(model_config(name), serving, batch, Rank(CARDS["H200"], 10**10, first, last))


def test_what_is_left() -> None:
    found = budget("qwen2.5-7b")
    assert found.requested == -(-150_109_110_272 * 9 // 10)
    assert found.available == found.requested - 10**10 - found.estimated


def test_each_request_has_a_table_of_the_vocabulary() -> None:
    more = budget("qwen2.5-7b", Batch(8192, 256, 2048, 0.9)).buffers - budget("qwen2.5-7b").buffers
    assert more == pytest.approx(192 * 152064 * 4 * (1 + 1 / 32), rel=0.05)
    assert budget("qwen2.5-7b", last=False).buffers == 0


def test_logits_are_larger_than_a_layer_where_many_are_answered_at_once() -> None:
    many = Batch(8192, 1024, 2048, 0.9)
    assert budget("qwen2.5-0.5b", many).activations > 1024 * 151936 * 2
    assert budget("qwen2.5-0.5b", many, last=False).activations < 1024 * 151936


def test_experts_have_workspaces_that_stay() -> None:
    assert budget("qwen3-30b-a3b").buffers - budget("qwen3-8b").buffers == 2048 * 8 * (2048 + 2048) * 2


@pytest.mark.parametrize(
    ("batch", "sizes"),
    [
        (Batch(1, 4, 2048, 0.9), [1, 2, 4, 8]),
        (Batch(1, 12, 2048, 0.9), [1, 2, 4, 8, 12, 16, 24]),
        (Batch(1, 64, 16, 0.9), [1, 2, 4, 8, 16]),
    ],
)
def test_captured_batches(batch: Batch, sizes: list[int]) -> None:
    assert capture_sizes(batch) == sizes


def test_torch_compile_copies_the_embedding_where_that_is() -> None:
    found = budget("qwen2.5-7b", serving=Serving())
    assert found.activations + found.compiling == 152064 * 3584 * 2
    assert budget("qwen2.5-7b").compiling == budget("qwen2.5-7b", serving=Serving(), first=False).compiling == 0


def test_latent_attention_unpacks_context_for_the_profile_run() -> None:
    assert budget("deepseek-v3-6-layers").activations > 65536 * 128 * 256 * 2


def test_deep_gemm_takes_whole_tiles_for_each_expert() -> None:
    more = budget("qwen3-30b-a3b-fp8").buffers - budget("qwen3-30b-a3b-fp8", serving=Serving(deep_gemm=False)).buffers
    assert more == 128 * 127 * 4096 * 2


def test_communication_needs_memory_beside_what_vllm_may_use() -> None:
    two = Serving(tensor_parallel=2)
    sizes = [outside_bytes(serving, CARDS[card]) >> 20 for serving in (Serving(), two) for card in ("RTX 3060", "H200")]
    assert sizes == [320, 512, 576, 1792]


def test_graphs() -> None:
    assert len(capture_sizes(Batch(1, 256, 2048, 0.9))) == 51
    assert (budget("llama-8b").graphs, budget("llama-8b", serving=Serving()).graphs > 0) == (0, True)
