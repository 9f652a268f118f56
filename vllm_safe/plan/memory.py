"""The memory of a GPU beside the weights: activations, libraries and graphs, and the rest, which is for the KV cache."""

from __future__ import annotations

import math
from dataclasses import dataclass

from vllm_safe.common.sizes import GIB, MIB
from vllm_safe.plan.model_config import ModelConfig
from vllm_safe.plan.serving import Batch, Card, Serving

# Kernels, handles and workspaces that are loaded after vLLM has begun to measure: 0.26 to 0.30 GiB on one H200, and 0.10 to 0.20 if there
# are several GPUs, since their communication has loaded some of it before.
_LIBRARIES = 276 * MIB
_LIBRARIES_OF_SEVERAL = 148 * MIB
_CONTEXT = 512 * MIB  # of CUDA itself: it must be free in addition to the memory that vLLM may use
_CONTEXT_OF_SMALL = 320 * MIB  # on GPUs with fewer processors
_COMMUNICATION = 256 * MIB  # of NCCL: it must be free in addition, too
_COMMUNICATION_OF_SERVERS = 1280 * MIB  # with NVLink, NCCL takes 1.0 to 1.5 GiB
_BLOCK = 16  # tokens of a block of the KV cache
_GRAPH_OF_LAYER = 600 * 1024  # bytes of a captured graph for each layer: 0.50 to 0.65 MiB


@dataclass(frozen=True)
class CardBudget:
    """The division of the memory of one GPU by vLLM, in bytes (v1/worker/gpu_worker.py:620 determine_available_memory)."""

    requested: int  # gpu-memory-utilization of all memory
    weights: int
    buffers: int  # tables for each request, and workspaces that stay
    activations: int  # the peak of the profile run
    compiling: int  # the increase of the peak while torch.compile runs at a first start
    libraries: int
    graphs: int

    @property
    def estimated(self) -> int:
        """The part that depends on kernels and libraries."""
        return self.buffers + self.activations + self.compiling + self.libraries + self.graphs

    @property
    def available(self) -> int:
        """The rest, for the KV cache. It is negative if the other parts are too large."""
        return self.requested - self.weights - self.estimated


@dataclass(frozen=True)
class Rank:
    """One of vLLM's workers.

    `first`: it belongs to the first stage of the pipeline, which has the embedding. `last`: to the last stage, which has the output layer.
    """

    card: Card
    weights: int
    first: bool = True
    last: bool = True


def budget_card(config: ModelConfig, serving: Serving, batch: Batch, rank: Rank) -> CardBudget:
    """Return the budget of one GPU."""
    workspace = _expert_workspace(config, serving, batch, rank.card)
    activations = _activations(config, serving, batch, last=rank.last)
    # torch.compile copies the embedding for a moment. Neither the workspace nor anything else has been allocated by then.
    copied = config.vocab * config.hidden // serving.tensor_parallel * config.item_size if rank.first and not serving.enforce_eager else 0
    return CardBudget(
        requested=math.ceil(rank.card.memory * batch.gpu_memory_utilization),
        weights=rank.weights,
        buffers=workspace + (_request_tables(config, batch) if rank.last else 0),
        activations=activations,
        compiling=max(0, copied - workspace - activations),
        libraries=_LIBRARIES if serving.ranks == 1 else _LIBRARIES_OF_SEVERAL,
        graphs=_graphs(config, serving, batch),
    )


def outside_bytes(serving: Serving, card: Card) -> int:
    """Return the bytes of a GPU that CUDA and NCCL take before vLLM measures its free memory."""
    server = card.memory > 70 * GIB
    context = _CONTEXT if card.memory > 32 * GIB else _CONTEXT_OF_SMALL
    if serving.ranks == 1:
        return context
    return context + (_COMMUNICATION_OF_SERVERS if server and card.capability >= (9, 0) else _COMMUNICATION)


def _request_tables(config: ModelConfig, batch: Batch) -> int:
    # v1/worker/gpu/sample/penalties.py:37: for each token of the vocabulary, counts and one bit: whether the prompt contains it
    return batch.max_num_seqs * (4 * config.vocab + 4 * math.ceil(config.vocab / 32) + 16 * 1024)


def _expert_workspace(config: ModelConfig, serving: Serving, batch: Batch, card: Card) -> int:
    """Return the two workspaces of a fused mixture of experts, which are kept (fused_moe/experts/triton_moe.py:226 workspace_shapes)."""
    experts = config.experts
    if not experts:
        return 0
    width = experts.intermediate // (1 if serving.expert_parallel else serving.tensor_parallel)
    rows = batch.max_num_batched_tokens * experts.per_token
    quantization = config.quantization
    if serving.deep_gemm and quantization and quantization.block and card.capability >= (9, 0):
        # fused_moe/deep_gemm_utils.py: whole tiles of 128 rows for each expert
        rows += experts.count // (serving.tensor_parallel if serving.expert_parallel else 1) * 127
    return rows * (max(width, config.hidden) + max(2 * width, config.hidden)) * config.item_size


def _latent_rows(batch: Batch) -> int:
    """Return the tokens of context that latent attention unpacks at once (mla_attention.py:2293)."""
    rows = min(max(8 * batch.max_model_len, 4 * batch.max_num_seqs * _BLOCK), 64 * 1024)
    return max(rows, batch.max_num_seqs * _BLOCK)


def _activations(config: ModelConfig, serving: Serving, batch: Batch, *, last: bool) -> int:
    """Return the largest sum of tensors that are alive at once in the profile run: those of a layer, or the logits."""
    size, split, tokens = config.item_size, serving.tensor_parallel, batch.max_num_batched_tokens
    states = (4 if split == 1 else 5) * config.hidden
    attention = tokens * (states + _attention_values(config) / split)
    if config.latent:
        attention += _latent_rows(batch) * config.heads / split * (config.latent.nope_dim + config.latent.v_dim)
    values = max(attention, tokens * (states + _feed_forward_values(config) / split))
    if last:
        copies = (3 if config.softcap else 1) + (1 if split > 1 else 0)
        values = max(values, tokens * config.hidden + batch.max_num_seqs * config.vocab * copies)
    return int(values * size)


def _attention_values(config: ModelConfig) -> float:
    """Return how many values of one token are alive at once in the attention."""
    if config.latent:
        return 1.5 * config.heads * (config.latent.nope_dim + config.latent.rope_dim)
    return (2 if config.query_norm else 1.5) * (config.heads + 2 * config.kv_heads) * config.head_dim


def _feed_forward_values(config: ModelConfig) -> float:
    """Return how many values of one token are alive at once in the feed-forward of a layer."""
    experts = config.experts
    if not experts or len(experts.layers) < config.layers:
        return 3 * config.intermediate
    if config.family == "gpt_oss":  # its kernels of Triton have no workspace, and keep what each expert makes of a token
        return 2 * experts.per_token * experts.intermediate
    return 3 * experts.shared_intermediate


def capture_sizes(batch: Batch) -> list[int]:
    """Return the batch sizes that vLLM captures graphs of (config/vllm.py:2300 _set_cudagraph_sizes)."""
    most = min(batch.max_num_seqs * 2, 512, batch.max_num_batched_tokens)
    sizes = [size for size in (1, 2, 4) if size <= most] + [*range(8, min(most + 1, 256), 8)] + [*range(256, most + 1, 16)]
    return sorted({*sizes, *([batch.max_num_seqs] if batch.max_num_seqs <= most else [])})


def _graphs(config: ModelConfig, serving: Serving, batch: Batch) -> int:
    """Return what vLLM estimates for its graphs: those of whole decode steps cost most (gpu/cudagraph_utils.py:873)."""
    if serving.enforce_eager:
        return 0
    sizes = capture_sizes(batch)
    whole = sum(size <= batch.max_num_seqs for size in sizes)
    layers = math.ceil(config.layers / serving.pipeline_parallel)
    values = 4 * config.hidden + max(_attention_values(config), _feed_forward_values(config)) / serving.tensor_parallel
    return int(whole * layers * _GRAPH_OF_LAYER + max(sizes) * values * config.item_size)
