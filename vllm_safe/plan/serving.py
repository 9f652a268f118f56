"""The arguments of `vllm serve` that determine how much memory of a GPU is needed, with vLLM's own defaults."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from vllm_safe.common.errors import Misuse
from vllm_safe.common.sizes import GIB

# Options that change the memory needed in a way that is not computed here.
UNPLANNED = (
    *("speculative-config", "enable-lora", "cpu-offload-gb", "kv-transfer-config", "enable-dbo", "data-parallel-size", "hf-overrides"),
    *("decode-context-parallel-size", "prefill-context-parallel-size", "num-gpu-blocks-override", "kv-offloading-size", "hf-config-path"),
    *("compilation-config", "performance-mode", "optimization-level", "quantization-config", "limit-mm-per-prompt", "max-loras"),
    *("enable-sleep-mode", "runner", "convert", "kv-cache-dtype-skip-layers", "disable-hybrid-kv-cache-manager", "config-format"),
    *("distributed-executor-backend", "load-format", "model-impl", "nnodes"),
)
# Values of some of these options that change nothing.
_ORDINARY: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "config-format": frozenset({"auto", "hf"}),
        "convert": frozenset({"auto", "none"}),
        "distributed-executor-backend": frozenset({"mp", "uni"}),  # the others can use GPUs of other machines
        "load-format": frozenset({"auto", "hf", "safetensors", "fastsafetensors", "runai_streamer", "pt", "npcache", "dummy"}),
        "model-impl": frozenset({"auto", "vllm"}),
        "runner": frozenset({"auto", "generate"}),
    }
)


# All options that a plan asks for.
PLANNED_OPTIONS = (
    *(
        "tensor-parallel-size",
        "pipeline-parallel-size",
        "enable-expert-parallel",
        "max-model-len",
        "max-num-seqs",
        "max-num-batched-tokens",
    ),
    *("gpu-memory-utilization", "kv-cache-memory-bytes", "kv-cache-dtype", "block-size", "dtype", "quantization", "enforce-eager"),
    *UNPLANNED,
)
# Options with a small effect, which a margin covers. With any other of these options no plan is certain.
ROUGHLY_PLANNED = frozenset({"compilation-config", "enable-sleep-mode", "limit-mm-per-prompt", "optimization-level", "performance-mode"})


@dataclass(frozen=True)
class Card:
    """One GPU as CUDA reports it. `memory`: its bytes; `used`: the bytes that others use before the start."""

    memory: int
    capability: tuple[int, int] = (8, 0)
    used: int = 0
    name: str = ""


@dataclass(frozen=True)
class Serving:
    """The requested arguments. None: not set, so that vLLM's default for the GPU and the model applies."""

    version: tuple[int, int] = (0, 32)
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    layer_partition: tuple[int, ...] = ()  # VLLM_PP_LAYER_PARTITION
    expert_parallel: bool = False
    max_model_len: int | None = None  # -1: as long as fits ("auto")
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    gpu_memory_utilization: float | None = None
    kv_cache_memory: int | None = None  # kv-cache-memory-bytes, which replaces the measurement
    kv_cache_dtype: str = "auto"
    block_size: int | None = None
    dtype: str = "auto"
    quantization: str | None = None
    enforce_eager: bool = False
    deep_gemm: bool = True  # VLLM_USE_DEEP_GEMM
    any_length: bool = False  # VLLM_ALLOW_LONG_MAX_MODEL_LEN
    unplanned: tuple[str, ...] = ()  # options whose effect on memory is not computed

    @property
    def ranks(self) -> int:
        """The number of GPUs."""
        return self.tensor_parallel * self.pipeline_parallel


@dataclass(frozen=True)
class Batch:
    """The values in force after vLLM has filled in its defaults."""

    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    gpu_memory_utilization: float


def read_serving(args: Mapping[str, Any], env: Mapping[str, str] | None = None, version: tuple[int, int] = (0, 32)) -> Serving:
    """Read the settings `args` and `env` of a model. Raises Misuse if an option has an invalid value."""
    env = env or {}
    partition = env.get("VLLM_PP_LAYER_PARTITION", "")
    if partition and not re.fullmatch(r"\d{1,6}(,\d{1,6})*", partition):
        raise Misuse("VLLM_PP_LAYER_PARTITION is not a list of numbers", hint="Set it to the layers of each stage, such as 20,28.")
    utilization = _number(args, "gpu-memory-utilization")
    if utilization is not None and not 0 < utilization <= 1:
        raise Misuse("gpu-memory-utilization is not between 0 and 1", hint="Set it to the share of each GPU, such as 0.9.")
    return Serving(
        version=version,
        tensor_parallel=_count(args, "tensor-parallel-size") or 1,
        pipeline_parallel=_count(args, "pipeline-parallel-size") or 1,
        layer_partition=tuple(map(int, partition.split(","))) if partition else (),
        expert_parallel=args.get("enable-expert-parallel") is True,
        max_model_len=-1 if str(args.get("max-model-len")).strip().lower() in {"auto", "-1"} else _count(args, "max-model-len"),
        max_num_seqs=_count(args, "max-num-seqs"),
        max_num_batched_tokens=_count(args, "max-num-batched-tokens"),
        gpu_memory_utilization=utilization,
        kv_cache_memory=_count(args, "kv-cache-memory-bytes", most=1 << 50),
        kv_cache_dtype=_word(args, "kv-cache-dtype") or "auto",
        block_size=_count(args, "block-size"),
        dtype=_word(args, "dtype") or "auto",
        quantization=_word(args, "quantization"),
        enforce_eager=args.get("enforce-eager") is True,
        deep_gemm=env.get("VLLM_USE_DEEP_GEMM", "1") != "0",
        any_length=env.get("VLLM_ALLOW_LONG_MAX_MODEL_LEN", "0") != "0",
        unplanned=tuple(name for name in UNPLANNED if _is_set(args.get(name), _ORDINARY.get(name, frozenset()))),
    )


def fill_defaults(serving: Serving, cards: tuple[Card, ...], model_length: int) -> Batch:
    """Return the arguments with vLLM's defaults for those that are not set. `model_length`: the longest context of the model."""
    memory = min((card.memory for card in cards), default=0)
    # engine/arg_utils.py:2888 get_batch_defaults, usage context OPENAI_API_SERVER: (batched tokens, sequences). It looks at the first GPU.
    name = cards[0].name.lower() if cards else ""
    if memory >= 160 * GIB:
        tokens, seqs = 16384, 1024
    elif memory >= 70 * GIB and "a100" not in name:
        tokens, seqs = 8192, 1024
    else:
        tokens, seqs = 2048, 256
    length = serving.max_model_len if serving.max_model_len and serving.max_model_len > 0 else model_length
    wanted_seqs = serving.max_num_seqs or seqs
    batched = serving.max_num_batched_tokens or min(tokens, wanted_seqs * length)  # arg_utils.py:3167
    return Batch(
        max_model_len=length,
        max_num_seqs=serving.max_num_seqs or min(seqs, batched),  # arg_utils.py:3180
        max_num_batched_tokens=batched,
        gpu_memory_utilization=serving.gpu_memory_utilization or 0.92,  # config/cache.py:102
    )


def _is_set(value: object, ordinary: frozenset[str]) -> bool:
    """Return whether an option changes anything: a size of 1 splits nothing, and 0 means that it is off."""
    return value is True or not (value is None or value in (False, 1) or str(value) in ordinary)


# utils/argparse_utils.py human_readable_int: 8k is not 8K
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def _word(args: Mapping[str, Any], option: str) -> str | None:
    value = args.get(option)
    return None if value is None else str(value)[:40]


def _count(args: Mapping[str, Any], option: str, most: int = 1 << 31) -> int | None:
    value = args.get(option)
    if value is None:
        return None
    if isinstance(value, str) and (match := re.fullmatch(r"\s*(\d{1,12}(?:\.\d{1,6})?)([kmgtKMGT]?)\s*", value, re.ASCII)):
        value = int(float(match[1]) * _UNITS[match[2]])
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= most:
        raise Misuse(f"{option} is not a whole number of 1 or more", hint=f"Correct {option}, or leave it out for vLLM's default.")
    return value


def _number(args: Mapping[str, Any], option: str) -> float | None:
    value = args.get(option)
    if value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if isinstance(value, bool) or not math.isfinite(number):
        raise Misuse(f"{option} is not a number", hint=f"Correct {option}, or leave it out for vLLM's default.")
    return number
