"""The bytes of weights on each GPU after vLLM has loaded, split, fused and repacked them."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

from vllm_safe.common.sizes import MIB
from vllm_safe.plan.model_config import ModelConfig
from vllm_safe.plan.serving import Serving
from vllm_safe.plan.tensors import BITS, Tensor

_FUSED = {  # vLLM's one parameter for several of the checkpoint: packed_modules_mapping of each model
    **dict.fromkeys(("q_proj", "k_proj", "v_proj"), "qkv_proj"),
    **dict.fromkeys(("gate_proj", "up_proj", "w1", "w3"), "gate_up_proj"),
    **dict.fromkeys(("q_a_proj", "kv_a_proj_with_mqa"), "fused_qkv_a_proj"),
}
_COLUMN = frozenset({"q_proj", "k_proj", "v_proj", "qkv_proj", "gate_proj", "up_proj", "gate_up_proj", "w1", "w3", "q_b_proj", "kv_b_proj"})
_ROW = frozenset({"o_proj", "down_proj", "w2"})
_VOCABULARY = frozenset({"embed_tokens", "lm_head"})
_VOCABULARY_EVERYWHERE = frozenset({"mixtral", "qwen3_moe"})  # models/mixtral.py, qwen3_moe.py: on each stage of a pipeline
_INPUTS_FIRST = frozenset({"qweight", "qzeros", "scales"})  # (inputs, outputs); the others are (outputs, inputs)
_PLAIN = frozenset({"F64", "F32", "F16", "BF16"})
_DROPPED = frozenset({"g_idx", "inv_freq", "weight_shape"})
_LAYER = re.compile(r"(?:^|\.)layers\.(\d{1,6})\.")
_PADDING = 64  # of the vocabulary: layers/vocab_parallel_embedding.py DEFAULT_VOCAB_PADDING_SIZE


def split_layers(layers: int, serving: Serving) -> tuple[range, ...]:
    """Return the layers of each stage of the pipeline (distributed/utils.py:126 get_pp_indices)."""
    stages = serving.pipeline_parallel
    counts = list(serving.layer_partition)
    if not counts:
        counts = [layers // stages] * stages
        for index in range(2, layers % stages + 2):
            counts[-index] += 1
    starts = [sum(counts[:stage]) for stage in range(stages)]
    return tuple(range(start, start + count) for start, count in zip(starts, counts, strict=True))


def place_weights(config: ModelConfig, tensors: Iterable[Tensor], serving: Serving, capability: tuple[int, int]) -> tuple[int, ...]:
    """Return the bytes of weights on each GPU, as vLLM reports them ("Model loading took"), in the order of the ranks."""
    stages = split_layers(config.layers, serving)
    allocations: list[dict[str, float]] = [defaultdict(float) for _ in stages]
    place = _Placement(config, serving, capability)
    for tensor in tensors:
        for stage in place.stages(tensor, stages):
            for key, size in place.on_rank(tensor):
                allocations[stage][key] += size
    rotary = _rotary_caches(config)
    sizes = [sum(map(_allocated, parts.values())) + rotary for parts in allocations]
    return tuple(size for size in sizes for _ in range(serving.tensor_parallel))


@dataclass(frozen=True)
class _Placement:
    config: ModelConfig
    serving: Serving
    capability: tuple[int, int]

    def stages(self, tensor: Tensor, stages: tuple[range, ...]) -> Iterable[int]:
        """Return the stages that hold a tensor; none if vLLM does not load it."""
        name, last = tensor.name, len(stages) - 1
        found: Iterable[int] = (0,)
        if name.rpartition(".")[2] in _DROPPED:
            found = ()
        elif _VOCABULARY & set(name.split(".")) and self.config.family in _VOCABULARY_EVERYWHERE:
            found = range(len(stages))
        elif "embed_tokens" in name and self.config.tied:
            found = sorted({0, last})
        elif name.startswith("lm_head") or ".lm_head." in name:
            found = () if self.config.tied else (last,)
        elif _is_text(name) and (layer := _LAYER.search(name)):
            # Layers beyond the last belong to multi-token prediction. They are loaded only for speculative decoding.
            found = tuple(stage for stage, layers in enumerate(stages) if int(layer[1]) in layers)
        elif name.endswith("model.norm.weight"):
            found = (last,)
        return found

    def on_rank(self, tensor: Tensor) -> Iterable[tuple[str, float]]:
        """Return vLLM's parameters that a tensor becomes a part of, with the bytes of that part on one rank."""
        module, _, part = tensor.name.rpartition(".")
        if part not in {"weight", "bias"} | _INPUTS_FIRST | _DROPPED and not part.startswith(("weight_", "input_", "e_score")):
            module, part = tensor.name, "weight"  # a bare parameter, such as sinks
        parent, _, leaf = module.rpartition(".")
        if ".experts" in f".{module}" and "shared_expert" not in module:
            if re.search(r"_(?:blocks|scales|bias)$", leaf):
                return [(tensor.name, self._gpt_oss(tensor))]
            count = tensor.count / self.serving.tensor_parallel if self.serving.expert_parallel else tensor.count
            split = 1 if self.serving.expert_parallel else self.serving.tensor_parallel
            fused = "w2" if leaf in _ROW else "w13"
            return [(f"{re.sub(r'experts[.][*0-9]+', 'experts', parent)}.{fused}.{part}", count * self._linear(tensor, leaf, part, split))]
        key = f"{parent}.{_FUSED.get(leaf, leaf)}.{part}"
        if self.config.latent and leaf == "q_proj":
            key = f"{parent}.q_proj.{part}"
        split = self.serving.tensor_parallel
        found = [(key, tensor.count * self._linear(tensor, leaf, part, split))]
        if leaf == "kv_b_proj" and part == "weight" and tensor.dtype not in _PLAIN:
            # mla_attention.py:1220: the absorbed matrices are views: of the tensor if it is not quantised, otherwise of an unquantised copy
            found.append((f"{key}.dequantized", prod(tensor.shape) / split * self.config.item_size))
        return found

    def _linear(self, tensor: Tensor, leaf: str, part: str, split: int) -> float:
        """Return the bytes of one linear layer's part on a rank."""
        shape, size = tensor.shape, self._item_bytes(tensor, part)
        if leaf in _VOCABULARY:
            rows = _round_up(shape[0], _PADDING)
            return -(-rows // split) * prod(shape[1:]) * size
        axis = self._axis(tensor, leaf, part)
        # One scale for each output of a layer that is split along its inputs, or one for the whole layer, is on each rank.
        if axis is None or axis >= len(shape) or shape[axis] == 1:
            return prod(shape) * size
        rest = prod(side for index, side in enumerate(shape) if index != axis)
        return rest * self._share(tensor, leaf, part, axis, split) * size

    def _axis(self, tensor: Tensor, leaf: str, part: str) -> int | None:
        """Return the dimension that is split over the ranks, or None if each rank has the whole tensor."""
        if leaf in _ROW and part == "bias":
            return None
        axis = 0 if leaf in _COLUMN or tensor.name.endswith("sinks") else 1 if leaf in _ROW else None
        return 1 - axis if axis is not None and part in _INPUTS_FIRST else axis

    def _zero_points(self, tensor: Tensor) -> float:
        """Return the bytes of four bytes of zero points after repacking (kernels/linear/mixed_precision)."""
        quantization = self.config.quantization
        if ".experts." in tensor.name or not quantization:
            return 4
        hopper = self.capability[0] == 9  # Machete; Marlin on other GPUs
        if quantization.method == "gptq" and quantization.symmetric:
            return 4 if hopper else 0  # they are not used: Machete leaves them in place, Marlin drops them
        return 32 / quantization.bits * self.config.item_size if hopper else 4  # Machete multiplies them by the scales

    def _share(self, tensor: Tensor, leaf: str, part: str, axis: int, split: int) -> float:
        """Return how many of the rows or columns along the split axis a rank has."""
        whole, config = tensor.shape[axis], self.config
        if leaf in {"k_proj", "v_proj"}:
            return whole / min(split, config.kv_heads)  # fewer heads than ranks: repeated
        if leaf == "qkv_proj":
            keys = whole * 2 * config.kv_heads / (config.heads + 2 * config.kv_heads)
            return (whole - keys) / split + keys / min(split, config.kv_heads)
        if ".experts." in tensor.name and config.quantization and config.quantization.block and part == "weight":
            block = config.quantization.block[0]  # fused_moe/oracle/fp8.py:330: padded to whole blocks
            return -(-(whole / split) // block) * block
        if part == "weight_scale_inv":
            return -(-whole // split)
        return whole / split

    def _item_bytes(self, tensor: Tensor, part: str) -> float:
        """Return the bytes of one value of a tensor on the GPU."""
        quantization = self.config.quantization
        if part in {"qzeros", "weight_zero_point"} and quantization and quantization.packed:
            return self._zero_points(tensor)
        if part in {"weight_scale", "weight_scale_inv"}:
            old = self.capability < (8, 9)
            if old and quantization and quantization.block and quantization.kind == "float":
                # Marlin has a scale for each output and group: the scale of a block is repeated for each of its rows.
                return quantization.block[0] * self.config.item_size
            return self.config.item_size if quantization and quantization.packed else 4
        if part.startswith("e_score") or (self.config.family == "glm4_moe" and tensor.name.endswith(".mlp.gate.weight")):
            return 4
        return self.config.item_size if tensor.dtype in _PLAIN else BITS[tensor.dtype] / 8

    def _gpt_oss(self, tensor: Tensor) -> float:
        """Return the bytes of gpt-oss's experts, whose sides are padded for the kernel (fused_moe/oracle/mxfp4.py:816)."""
        experts, split = tensor.shape[0], self.serving.tensor_parallel
        if self.serving.expert_parallel:
            experts, split = -(-experts // split), 1
        hidden, width = self.config.hidden, -(-(self.config.experts.intermediate if self.config.experts else 0) // split)
        if self.capability[0] == 9:  # the kernels of Triton
            width = _round_up(width, 64)
        else:  # Marlin, and FlashInfer's TRT-LLM on 10.x
            hidden, width = _round_up(hidden, 256), _round_up(width, 128)
        gate_up = "gate_up_proj" in tensor.name
        out, inputs = (2 * width, hidden) if gate_up else (hidden, width)
        if tensor.name.endswith("_blocks"):
            return experts * out * inputs / 2
        if tensor.name.endswith("_scales"):
            groups = -(-inputs // 32)
            return experts * out * (_round_up(groups, 8) if self.capability[0] == 9 else groups)
        return experts * out * 2


def _is_text(name: str) -> bool:
    return not re.search(r"(?:^|\.)(?:vision|visual|audio|image|multi_modal|mm_)", name)


def _rotary_caches(config: ModelConfig) -> int:
    """Return the bytes of the tables of sines and cosines: all equal layers share one; layers with a window have one that is not scaled."""
    rows = config.rotary_positions
    if config.family == "gemma3" and any(config.windows):
        rows += config.max_positions
    return rows * config.rotary_dim * config.item_size


def _allocated(size: float) -> int:
    """Return what torch's caching allocator counts for a tensor with the split limit of 20 MB that vLLM loads under (gpu_worker.py:591)."""
    whole = -(-int(size) // 512) * 512
    if whole < 10 * MIB:
        return whole
    segment = _round_up(whole, 2 * MIB)
    return segment if whole >= 20 * MIB or segment - whole <= MIB else whole


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
