"""The KV cache as vLLM lays it out: bytes of a block, blocks of a request, and "GPU KV cache size: N tokens"."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from vllm_safe.plan.model_config import ModelConfig
from vllm_safe.plan.placement import split_layers
from vllm_safe.plan.serving import Batch, Serving

_BLOCK = 16  # config/cache.py: DEFAULT_BLOCK_SIZE; FlashAttention, Triton and FlashInfer take it (get_preferred_block_size)


@dataclass(frozen=True)
class CacheGroup:
    """Layers that share one table of blocks. `window`: tokens that they attend to, 0 for all."""

    window: int
    layers: tuple[int, ...]


@dataclass(frozen=True)
class CacheLayout:
    """The cache of one model. `token_bytes`: of one layer on one rank, keys and values."""

    groups: tuple[CacheGroup, ...]
    token_bytes: int
    block_size: int
    in_flight: int  # tokens that may be scheduled before the blocks behind a window are freed
    block_bytes: tuple[int, ...]  # of one block on each rank: the size for its largest group, whose memory the others share

    def blocks(self, available: tuple[int, ...]) -> int:
        """Return the number of blocks if so many bytes are free on each rank: all ranks have as many as the rank with the fewest."""
        sizes = zip(available, self.block_bytes, strict=True)
        return min((max(0, room) // size for room, size in sizes if size), default=0)

    def request_blocks(self, length: int) -> int:
        """Return the largest number of blocks that a request of so many tokens takes."""
        blocks = 0
        for window, count in Counter(group.window for group in self.groups).items():
            if window:  # v1/kv_cache_interface.py:859 max_admission_blocks_per_request
                blocks += count * (_ceil(min(window - 1 + self.in_flight, length), self.block_size) + 1)
            else:
                blocks += count * _ceil(length, self.block_size)
        return blocks

    def tokens(self, blocks: int, length: int) -> int:
        """Return the figure that vLLM prints as "GPU KV cache size" (v1/core/kv_cache_utils.py get_kv_cache_capacity)."""
        return int(blocks / self.request_blocks(length) * length)

    def longest(self, blocks: int, most: int) -> int:
        """Return the longest request that fits, at most `most` tokens. One block is never used (BlockPool's null block)."""
        low, high = 0, most
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.request_blocks(middle) <= blocks - 1 else (low, middle - 1)
        return low


def lay_out(config: ModelConfig, serving: Serving, batch: Batch, capability: tuple[int, int]) -> CacheLayout:
    """Return the layout of a model's cache."""
    groups, token_bytes = _groups(config.windows), _token_bytes(config, serving)
    block_size = serving.block_size or _block_size(config, capability)
    largest = [max(sum(layer in stage for layer in group.layers) for group in groups) for stage in split_layers(config.layers, serving)]
    return CacheLayout(
        groups=groups,
        token_bytes=token_bytes,
        block_size=block_size,
        block_bytes=tuple(layers * token_bytes * block_size for layers in largest for _ in range(serving.tensor_parallel)),
        # config/vllm.py:577 max_concurrent_batches: the pipeline's stages and one more, for asynchronous scheduling
        in_flight=(serving.pipeline_parallel + 1) * batch.max_num_batched_tokens,
    )


def kv_item_size(config: ModelConfig, serving: Serving) -> int:
    """Return the bytes of one cached value."""
    return 1 if serving.kv_cache_dtype.startswith("fp8") else config.item_size


def _token_bytes(config: ModelConfig, serving: Serving) -> int:
    if config.latent:  # one vector for all heads, which every rank holds
        if serving.kv_cache_dtype == "fp8_ds_mla":
            return 656  # v1/kv_cache_interface.py: 512 values, 4 scales, 64 values of 2 bytes
        return (config.latent.kv_rank + config.latent.rope_dim) * kv_item_size(config, serving)
    heads = max(1, config.kv_heads // serving.tensor_parallel)
    return heads * 2 * config.head_dim * kv_item_size(config, serving)


def _block_size(config: ModelConfig, capability: tuple[int, int]) -> int:
    """Return the block size that the attention backend prefers (platforms/cuda.py _get_backend_priorities)."""
    if config.latent and capability[0] == 10:
        return 32  # FlashInfer MLA takes 32 and 64
    return _BLOCK


def _groups(windows: tuple[int, ...]) -> tuple[CacheGroup, ...]:
    """Return the groups of v1/core/kv_cache_utils.py _get_kv_cache_groups_uniform_page_size."""
    kinds: dict[int, list[int]] = {}
    for layer, window in enumerate(windows):
        kinds.setdefault(window, []).append(layer)
    if len(kinds) == 1:
        return tuple(CacheGroup(window, tuple(layers)) for window, layers in kinds.items())
    fewest, most = min(map(len, kinds.values())), max(map(len, kinds.values()))
    size = most if most < fewest * 1.5 else fewest
    groups = []
    for window, layers in kinds.items():
        count = _ceil(len(layers), size)
        groups += [CacheGroup(window, tuple(layers[first::count])) for first in range(count)]
    return tuple(groups)


def _ceil(value: int, divisor: int) -> int:
    return -(-value // divisor)
