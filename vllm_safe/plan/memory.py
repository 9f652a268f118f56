"""What a card holds beside the weights, and what is left of it for the KV cache."""

from __future__ import annotations

import math
from dataclasses import dataclass

from vllm_safe.common.sizes import GIB, MIB
from vllm_safe.plan.model_config import ModelConfig
from vllm_safe.plan.serving import Batch, Card, Serving

# What CUDA's context takes of a card before vLLM measures: it is no part of what vLLM may use, but has to be free beside it.
CONTEXT = 512 * MIB
# Kernels, handles and workspaces that a start leaves on the card, measured on one H200 with vLLM 0.32 (tests/unit/plan/truth.json).
_LIBRARIES = 220 * MIB
_COMMUNICATION = 100 * MIB  # what NCCL and the all-reduce kernels take after the measurement began


@dataclass(frozen=True)
class CardBudget:
    """How vLLM divides the memory of one card, in bytes (v1/worker/gpu_worker.py:620 determine_available_memory)."""

    requested: int  # gpu-memory-utilization of all memory
    weights: int
    buffers: int  # tables for each request, and workspaces that stay
    activations: int  # the peak of the profile run
    libraries: int
    graphs: int

    @property
    def estimated(self) -> int:
        """The part that depends on kernels and libraries."""
        return self.buffers + self.activations + self.libraries + self.graphs

    @property
    def available(self) -> int:
        """What is left for the KV cache, which can be less than nothing."""
        return self.requested - self.weights - self.estimated


@dataclass(frozen=True)
class Rank:
    """One of vLLM's workers. `last`: it is of the pipeline's last stage, which has the output layer."""

    card: Card
    weights: int
    last: bool


def budget_card(config: ModelConfig, serving: Serving, batch: Batch, rank: Rank) -> CardBudget:
    """Return the budget of one card."""
    return CardBudget(
        requested=math.ceil(rank.card.memory * batch.gpu_memory_utilization),
        weights=rank.weights,
        buffers=(_request_tables(config, batch) if rank.last else 0) + _expert_workspace(config, serving, batch, rank.card),
        activations=_activations(config, serving, batch, last=rank.last),
        libraries=_LIBRARIES + (_COMMUNICATION if serving.ranks > 1 else 0),
        graphs=_graphs(config, serving, batch),
    )


def _request_tables(config: ModelConfig, batch: Batch) -> int:
    # v1/worker/gpu/sample/penalties.py:37: counts of each token of the vocabulary, and one bit whether the prompt has it
    return batch.max_num_seqs * (4 * config.vocab + 4 * math.ceil(config.vocab / 32) + 16 * 1024)


def _expert_workspace(config: ModelConfig, serving: Serving, batch: Batch, card: Card) -> int:
    """Return the two workspaces of a fused mixture of experts, which stay (fused_moe/experts/triton_moe.py:226 workspace_shapes)."""
    experts = config.experts
    if not experts:
        return 0
    split = 1 if serving.expert_parallel else serving.tensor_parallel
    width = experts.intermediate // split
    rows = batch.max_num_batched_tokens * experts.per_token
    quantization = config.quantization
    if quantization and quantization.block and card.capability >= (9, 0):
        rows += experts.count // (serving.tensor_parallel if serving.expert_parallel else 1) * 127  # DeepGEMM: whole tiles for each expert
    return rows * (max(width, config.hidden) + max(2 * width, config.hidden)) * config.item_size


def _activations(config: ModelConfig, serving: Serving, batch: Batch, *, last: bool) -> int:
    """Return the largest sum of tensors that are alive at once in the profile run: in a layer, or where the logits are."""
    split, size = serving.tensor_parallel, config.item_size
    dense = config.intermediate
    if config.experts:
        dense = config.experts.shared_intermediate if len(config.experts.layers) == config.layers else config.intermediate
    feed_forward = 3 * dense / split
    attention = 2 * (config.heads + 2 * config.kv_heads) * config.head_dim / split
    if config.latent:
        attention = 2 * config.heads * (config.latent.nope_dim + config.latent.rope_dim + config.latent.v_dim) / split
    hidden = (3 if split == 1 else 4) * config.hidden
    layer = batch.max_num_batched_tokens * (hidden + max(feed_forward, attention)) * size
    if config.quantization and config.quantization.quantized_activations:
        layer += batch.max_num_batched_tokens * (config.hidden + max(dense / split, 0))
    if not last:
        return int(layer)
    copies = (3 if config.softcap else 1) + (1 if split > 1 else 0)
    logits = batch.max_num_batched_tokens * config.hidden * size + batch.max_num_seqs * config.vocab * size * copies
    return int(max(layer, logits))


def capture_sizes(batch: Batch) -> list[int]:
    """Return the batch sizes that vLLM captures graphs of (config/vllm.py:2300 _set_cudagraph_sizes)."""
    most = min(batch.max_num_seqs * 2, 512, batch.max_num_batched_tokens)
    sizes = [size for size in (1, 2, 4) if size <= most] + [*range(8, min(most + 1, 256), 8)] + [*range(256, most + 1, 16)]
    return sorted({*sizes, *([batch.max_num_seqs] if batch.max_num_seqs <= most else [])})


def _graphs(config: ModelConfig, serving: Serving, batch: Batch) -> int:
    if serving.enforce_eager:
        return 0
    return len(capture_sizes(batch)) * 2 * MIB + config.layers * 4 * MIB // max(1, serving.pipeline_parallel) + GIB // 8
