"""The properties of a model that are known before it is loaded: layers, attention, experts and quantisation."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

from vllm_safe.plan.quantization_config import Quantization

# The architectures whose tensors are known, by the family of plan/tensors.py.
FAMILIES = MappingProxyType(
    {
        "LlamaForCausalLM": "llama",
        "MistralForCausalLM": "llama",
        "Qwen2ForCausalLM": "qwen2",
        "Qwen3ForCausalLM": "qwen3",
        "GemmaForCausalLM": "gemma",
        "Gemma2ForCausalLM": "gemma2",
        "Gemma3ForCausalLM": "gemma3",
        "Gemma3ForConditionalGeneration": "gemma3",
        "Phi3ForCausalLM": "phi3",
        "MixtralForCausalLM": "mixtral",
        "Qwen3MoeForCausalLM": "qwen3_moe",
        "GptOssForCausalLM": "gpt_oss",
        "DeepseekV2ForCausalLM": "deepseek",
        "DeepseekV3ForCausalLM": "deepseek",
        "Glm4ForCausalLM": "glm4",
        "Glm4MoeForCausalLM": "glm4_moe",
    }
)

# The methods of quantisation whose tensors are known.
QUANTIZATIONS = frozenset({"gptq", "awq", "fp8", "mxfp4", "compressed-tensors"})

DTYPE_BYTES = MappingProxyType({"float32": 4, "float16": 2, "bfloat16": 2, "half": 2, "float": 4})


@dataclass(frozen=True)
class Experts:
    """A mixture of experts. `layers`: the layers that have it; the others have one dense feed-forward."""

    count: int
    per_token: int
    intermediate: int
    shared_intermediate: int  # 0: there is no expert that all tokens pass through
    layers: frozenset[int]
    correction_bias: bool = False


@dataclass(frozen=True)
class LatentAttention:
    """The ranks and dimensions of multi-head latent attention. `q_rank` 0: queries are not compressed."""

    q_rank: int
    kv_rank: int
    rope_dim: int
    nope_dim: int
    v_dim: int


@dataclass(frozen=True)
class ModelConfig:
    """One model. `windows`: of each layer, tokens that it attends to, 0 for all. `unknown`: properties that a plan ignores."""

    architecture: str
    family: str  # "" if its tensors are not known
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    tied: bool
    max_positions: int
    dtype: str
    windows: tuple[int, ...]
    query_bias: bool = False
    output_bias: bool = False
    feed_forward_bias: bool = False
    query_norm: bool = False
    rotary_dim: int = 0
    rotary_positions: int = 0  # rows of the table of sines and cosines
    softcap: bool = False  # of the logits
    experts: Experts | None = None
    latent: LatentAttention | None = None
    quantization: Quantization | None = None
    multimodal: bool = False
    unknown: tuple[str, ...] = ()

    @property
    def has_known_tensors(self) -> bool:
        """Whether the tensors of the weight files follow from this file alone."""
        return bool(self.family) and (self.quantization is None or self.quantization.method in QUANTIZATIONS)

    @property
    def item_size(self) -> int:
        """Bytes of one value that is not quantised."""
        return DTYPE_BYTES.get(self.dtype, 2)
