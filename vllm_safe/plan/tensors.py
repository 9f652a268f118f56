"""The tensors of a checkpoint, computed from config.json alone: names, shapes and types as in the files of its family."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from vllm_safe.common.errors import Failure
from vllm_safe.plan.model_config import ModelConfig
from vllm_safe.plan.quantization_config import Quantization, SkippedModules

# Bits of one value, by the names of the safetensors format.
BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E8M0", "I8", "U8", "BOOL", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}
_TYPES = {"float16": "F16", "half": "F16", "bfloat16": "BF16"}

_QKV = ("q_proj", "k_proj", "v_proj")
_GATE_UP = ("gate_proj", "up_proj")


@dataclass(frozen=True)
class Tensor:
    """One tensor, or `count` equal ones of different experts: then `name` has a `*` in place of the number of the expert."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    count: int = 1

    @property
    def size(self) -> int:
        """The bytes of all `count` tensors."""
        return self.count * math.prod(self.shape) * BITS[self.dtype] // 8


def list_tensors(config: ModelConfig) -> tuple[Tensor, ...]:
    """Return the tensors in the files of a model. Raises Failure if its architecture or quantisation is not known."""
    if not config.has_known_tensors:
        raise Failure(
            f"the tensors of {config.architecture} are not known from its config.json alone",
            hint="Fetch the model: its files say what they hold.",
        )
    return tuple(_Family(config).all())


class _Family:
    """The naming and the parts of one family."""

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        self.dtype = _TYPES.get(config.dtype, "BF16")
        self.skipped = SkippedModules(config.quantization)

    def all(self) -> Iterator[Tensor]:
        config = self.config
        yield self.plain("model.embed_tokens.weight", config.vocab, config.hidden)
        for layer in range(config.layers):
            yield from self.layer(layer)
        yield self.plain("model.norm.weight", config.hidden)
        if not config.tied:
            quantized = config.quantization is not None and config.quantization.head
            plain = (self.plain("lm_head.weight", config.vocab, config.hidden),)
            yield from self.linear("lm_head", config.vocab, config.hidden) if quantized else plain

    def layer(self, layer: int) -> Iterator[Tensor]:
        config, base = self.config, f"model.layers.{layer}"
        yield from (self.latent if config.latent else self.attention)(f"{base}.self_attn")
        if config.experts and layer in config.experts.layers:
            yield from self.experts(f"{base}.block_sparse_moe" if config.family == "mixtral" else f"{base}.mlp")
        else:
            yield from self.feed_forward(f"{base}.mlp", config.intermediate)
        norms = ["input_layernorm", "post_attention_layernorm"]
        if config.family in {"gemma2", "gemma3"}:
            norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
        if config.family == "glm4":
            norms += ["post_self_attn_layernorm", "post_mlp_layernorm"]
        for norm in norms:
            yield self.plain(f"{base}.{norm}.weight", config.hidden)

    def attention(self, base: str) -> Iterator[Tensor]:
        config = self.config
        queries, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim
        if config.family == "phi3":
            yield from self.linear(f"{base}.qkv_proj", queries + 2 * keys, config.hidden)
        else:
            for name, width in zip(_QKV, (queries, keys, keys), strict=True):
                yield from self.linear(f"{base}.{name}", width, config.hidden, bias=config.query_bias)
        yield from self.linear(f"{base}.o_proj", config.hidden, queries, bias=config.output_bias)
        if config.query_norm:
            yield self.plain(f"{base}.q_norm.weight", config.head_dim)
            yield self.plain(f"{base}.k_norm.weight", config.head_dim)
        if config.family == "gpt_oss":
            yield self.plain(f"{base}.sinks", config.heads)

    def latent(self, base: str) -> Iterator[Tensor]:
        config, latent = self.config, self.config.latent
        assert latent is not None  # noqa: S101 # the caller asked
        queries = config.heads * (latent.nope_dim + latent.rope_dim)
        if latent.q_rank:
            yield from self.linear(f"{base}.q_a_proj", latent.q_rank, config.hidden)
            yield self.plain(f"{base}.q_a_layernorm.weight", latent.q_rank)
            yield from self.linear(f"{base}.q_b_proj", queries, latent.q_rank)
        else:
            yield from self.linear(f"{base}.q_proj", queries, config.hidden)
        yield from self.linear(f"{base}.kv_a_proj_with_mqa", latent.kv_rank + latent.rope_dim, config.hidden)
        yield self.plain(f"{base}.kv_a_layernorm.weight", latent.kv_rank)
        yield from self.linear(f"{base}.kv_b_proj", config.heads * (latent.nope_dim + latent.v_dim), latent.kv_rank)
        yield from self.linear(f"{base}.o_proj", config.hidden, config.heads * latent.v_dim)

    def feed_forward(self, base: str, width: int, count: int = 1) -> Iterator[Tensor]:
        config = self.config
        bias = config.feed_forward_bias
        if config.family in {"phi3", "glm4"}:
            yield from self.linear(f"{base}.gate_up_proj", 2 * width, config.hidden, bias=bias)
        else:
            for name in _GATE_UP:
                yield from self.linear(f"{base}.{name}", width, config.hidden, bias=bias, count=count)
        yield from self.linear(f"{base}.down_proj", config.hidden, width, bias=bias, count=count)

    def experts(self, base: str) -> Iterator[Tensor]:
        config, experts = self.config, self.config.experts
        assert experts is not None  # noqa: S101 # the caller asked
        if config.family == "gpt_oss":
            yield from self.gpt_oss(base, experts.count, experts.intermediate)
            return
        yield self.plain(f"{base}.gate.weight", experts.count, config.hidden)
        if experts.correction_bias:
            yield Tensor(f"{base}.gate.e_score_correction_bias", (experts.count,), "F32")
        if config.family == "mixtral":
            for name, out, inputs in (("w1", 1, 0), ("w3", 1, 0), ("w2", 0, 1)):
                sides = (config.hidden, experts.intermediate)
                yield from self.linear(f"{base}.experts.*.{name}", sides[out], sides[inputs], count=experts.count)
        else:
            yield from self.feed_forward(f"{base}.experts.*", experts.intermediate, experts.count)
        if experts.shared_intermediate:
            yield from self.feed_forward(f"{base}.shared_experts", experts.shared_intermediate)

    def gpt_oss(self, base: str, count: int, width: int) -> Iterator[Tensor]:
        hidden = self.config.hidden
        yield self.plain(f"{base}.router.weight", count, hidden)
        yield self.plain(f"{base}.router.bias", count)
        mxfp4 = self.config.quantization is not None and self.config.quantization.method == "mxfp4"
        for name, out, inputs in (("gate_up_proj", 2 * width, hidden), ("down_proj", hidden, width)):
            if mxfp4:
                yield Tensor(f"{base}.experts.{name}_blocks", (count, out, math.ceil(inputs / 32), 16), "U8")
                yield Tensor(f"{base}.experts.{name}_scales", (count, out, math.ceil(inputs / 32)), "U8")
            else:
                yield self.plain(f"{base}.experts.{name}", count, inputs, out)
            yield self.plain(f"{base}.experts.{name}_bias", count, out)

    def plain(self, name: str, *shape: int, count: int = 1) -> Tensor:
        return Tensor(name, shape, self.dtype, count)

    def linear(self, name: str, out: int, inputs: int, *, bias: bool = False, count: int = 1) -> Iterator[Tensor]:
        """Return the tensors of one linear layer with these numbers of outputs and inputs."""
        quantization = self.config.quantization
        if quantization is None or quantization.method == "mxfp4" or self.skipped.has(name):
            yield self.plain(f"{name}.weight", out, inputs, count=count)
        else:
            for part, shape, dtype in _stored(quantization, out, inputs, self.dtype):
                yield Tensor(f"{name}.{part}", shape, dtype, count)
        if bias:
            yield self.plain(f"{name}.bias", out, count=count)


def _stored(quantization: Quantization, out: int, inputs: int, dtype: str) -> Iterator[tuple[str, tuple[int, ...], str]]:
    """Return the tensors of a quantised linear layer in the files: the end of the name, shape and type of each."""
    bits, packed = quantization.bits, 32 // quantization.bits if quantization.bits in {2, 4, 8} else 1
    groups = math.ceil(inputs / quantization.group) if quantization.group > 0 else 1
    if quantization.method == "gptq":
        yield "qweight", (math.ceil(inputs * bits / 32), out), "I32"
        yield "qzeros", (groups, math.ceil(out * bits / 32)), "I32"
        yield "scales", (groups, out), dtype
        yield "g_idx", (inputs,), "I32"
    elif quantization.method == "awq":
        yield "qweight", (inputs, math.ceil(out / packed)), "I32"
        yield "qzeros", (groups, math.ceil(out / packed)), "I32"
        yield "scales", (groups, out), dtype
    elif quantization.method == "fp8":
        yield "weight", (out, inputs), "F8_E4M3"
        if quantization.block:
            rows, columns = quantization.block
            yield "weight_scale_inv", (math.ceil(out / rows), math.ceil(inputs / columns)), "F32"
        else:
            yield "weight_scale", (1,), "F32"
        if quantization.static_activations:
            yield "input_scale", (1,), "F32"
    else:
        yield from _compressed(quantization, out, inputs, dtype)


def _compressed(quantization: Quantization, out: int, inputs: int, dtype: str) -> Iterator[tuple[str, tuple[int, ...], str]]:
    if quantization.packed:
        yield "weight_packed", (out, math.ceil(inputs * quantization.bits / 32)), "I32"
        yield "weight_shape", (2,), "I64"
    else:
        yield "weight", (out, inputs), "F8_E4M3" if quantization.kind == "float" else "I8"
    if quantization.block:
        rows, columns = quantization.block
        scales: tuple[int, ...] = (math.ceil(out / rows), math.ceil(inputs / columns))
    elif quantization.group > 0:
        scales = (out, math.ceil(inputs / quantization.group))
    else:
        scales = (out, 1) if quantization.group == 0 else (1,)
    yield "weight_scale", scales, dtype
    if not quantization.symmetric:
        yield "weight_zero_point", (math.ceil(scales[0] * quantization.bits / 32), *scales[1:]), "I32"
    if quantization.static_activations:
        yield "input_scale", (1,), "F32"
