"""The properties of a model in its config.json. Each value is checked, since anybody can have written the file."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from vllm_safe.common.errors import Failure
from vllm_safe.plan.model_config import DTYPE_BYTES, FAMILIES, Experts, LatentAttention, ModelConfig
from vllm_safe.plan.quantization_config import MOST_OTHERWISE, Quantization, QuantizationReader

# More than any known model by an order of magnitude: a plan of a hostile file must end at once.
_MOST = MappingProxyType(
    {
        "num_hidden_layers": 2000,
        "num_attention_heads": 1 << 14,
        "num_key_value_heads": 1 << 14,
        "vocab_size": 1 << 24,
        "hidden_size": 1 << 20,
        "intermediate_size": 1 << 22,
        "moe_intermediate_size": 1 << 22,
        "head_dim": 1 << 14,
        "sliding_window": 1 << 31,
        "max_position_embeddings": 1 << 31,
    }
)

# The defaults of each family's configuration class in transformers 5.19, for keys that config.json lacks (models/*/configuration_*.py).
_GEMMA = {"head_dim": 256, "tie_word_embeddings": True}
_GEMMA_2 = {**_GEMMA, "num_attention_heads": 8, "num_key_value_heads": 4, "sliding_window": 4096}
_DEFAULTS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "gemma": _GEMMA,
        "gemma2": {**_GEMMA_2, "vocab_size": 256000, "max_position_embeddings": 8192},
        "gemma3_text": {**_GEMMA_2, "vocab_size": 262208, "max_position_embeddings": 131072, "sliding_window_pattern": 6},
        "qwen2": {"max_window_layers": 28},
        "qwen3": {"head_dim": 128},
        "mistral": {"num_key_value_heads": 8, "sliding_window": 4096},
        "mixtral": {"num_key_value_heads": 8, "num_local_experts": 8, "num_experts_per_tok": 2},
        "gpt_oss": {"head_dim": 64, "num_key_value_heads": 8, "num_local_experts": 128, "num_experts_per_tok": 4, "sliding_window": 128},
        "glm4": {"head_dim": 128, "num_key_value_heads": 2, "attention_bias": True},
        "glm4_moe": {"num_key_value_heads": 8, "n_shared_experts": 1, "first_k_dense_replace": 1},
        "qwen3_moe": {"num_key_value_heads": 4, "decoder_sparse_step": 1},
        "deepseek_v2": {"q_lora_rank": 1536, "first_k_dense_replace": 0, "n_shared_experts": 2},
        "deepseek_v3": {"q_lora_rank": 1536, "first_k_dense_replace": 3, "n_shared_experts": 1},
    }
)

_YARN = frozenset({"yarn", "deepseek_yarn"})


def parse_model_config(values: object, file: str = "config.json") -> ModelConfig:
    """Check the values of config.json. Raises Failure with file and key if one is invalid."""
    if not isinstance(values, dict):
        raise Failure(f"{file} holds no JSON object", hint="Fetch the model again.")
    return _ConfigReader(values, file).model()


class _ConfigReader:
    """One config.json. A multimodal model's language part is in `text_config`; its quantisation may be beside that."""

    def __init__(self, values: dict[str, Any], file: str) -> None:
        self.file = file
        self.outer = values
        self.unknown: list[str] = []
        inner = values.get("text_config")
        self.multimodal = isinstance(inner, dict)
        self.values: dict[str, Any] = {**values, **inner} if isinstance(inner, dict) else values
        self.kind = self.text("model_type") or ""
        self.defaults = _DEFAULTS.get(self.kind, {})

    def flaw(self, key: str, wanted: str) -> Failure:
        return Failure(
            f"{self.file}: {key} is not {wanted}", hint="Compare the file with the one in the model's repository, or fetch it again."
        )

    def count(self, key: str, default: int | None = None, *, least: int = 1) -> int:
        value = self.values.get(key)
        if value is None:
            value = self.defaults.get(key)
        if value is None:
            value = default
        most = _MOST.get(key, MOST_OTHERWISE)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise self.flaw(key, f"a whole number from {least} to {most}")
        return value

    def optional(self, key: str) -> int | None:
        return None if self.values.get(key, self.defaults.get(key)) is None else self.count(key, least=0)

    def flag(self, key: str, *, default: bool = False) -> bool:
        value = self.values.get(key)
        if value is None:
            value = self.defaults.get(key, default)
        if not isinstance(value, bool):
            raise self.flaw(key, "true or false")
        return value

    def text(self, key: str) -> str | None:
        value = self.values.get(key)
        if value is not None and not (isinstance(value, str) and len(value) <= 200):
            raise self.flaw(key, "a text")
        return value

    def model(self) -> ModelConfig:
        architecture = self.architecture()
        family = FAMILIES.get(architecture, "")
        if not family:
            self.unknown.append(f"architecture {architecture}")
        layers, heads = self.count("num_hidden_layers"), self.count("num_attention_heads")
        hidden = self.count("hidden_size")
        kv_heads = self.optional("num_key_value_heads") or heads
        latent = self.latent() if family == "deepseek" or self.values.get("kv_lora_rank") is not None else None
        head_dim = self.optional("head_dim") or max(1, hidden // heads)
        biases = family in {"qwen2", "gpt_oss"} or (self.flag("attention_bias") and family != "deepseek")
        partial = self.values.get("partial_rotary_factor", 1)
        factor = partial if isinstance(partial, int | float) and not isinstance(partial, bool) and 0 < partial <= 1 else 1
        return ModelConfig(
            architecture=architecture,
            family=family,
            layers=layers,
            hidden=hidden,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            intermediate=self.count("intermediate_size"),
            vocab=self.count("vocab_size"),
            tied=self.flag("tie_word_embeddings", default=bool(self.outer.get("tie_word_embeddings") is True)),
            max_positions=self.longest(),
            dtype=self.dtype(),
            windows=self.windows(layers, family),
            query_bias=biases,
            output_bias=family == "gpt_oss" or (family == "llama" and self.flag("attention_bias")),
            feed_forward_bias=family == "llama" and self.flag("mlp_bias"),
            query_norm=family in {"qwen3", "qwen3_moe", "gemma3"} or (family == "glm4_moe" and self.flag("use_qk_norm")),
            rotary_dim=latent.rope_dim if latent else int(head_dim * factor),
            rotary_positions=self.rotary_positions(),
            softcap=self.values.get("final_logit_softcapping") is not None,
            experts=self.experts(layers, family),
            latent=latent,
            quantization=self.quantization(),
            multimodal=self.multimodal,
            unknown=tuple(dict.fromkeys(self.unknown)),
        )

    def architecture(self) -> str:
        named = self.outer.get("architectures")
        if not isinstance(named, list) or not named or not isinstance(named[0], str) or not re.fullmatch(r"[\w.-]{1,100}", named[0]):
            raise self.flaw("architectures", "a list with a name")
        return named[0]

    def dtype(self) -> str:
        name = self.text("dtype") or self.text("torch_dtype") or "float32"
        if name not in DTYPE_BYTES:
            self.unknown.append(f"dtype {name[:40]}")
        # config/model.py, _resolve_auto_dtype: vLLM serves no 4-byte model unless told to.
        return "bfloat16" if name in {"float32", "float"} or name not in DTYPE_BYTES else name

    def positions(self) -> int:
        """Return the length that the file names (transformers_utils/model_arch_config_convertor.py:394)."""
        if self.values.get("model_max_length"):
            return self.bounded("model_max_length")
        keys = (
            *("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"),
            *("max_target_positions", "max_sequence_length", "max_seq_length", "seq_len"),
        )
        found = [self.bounded(key) for key in keys if self.values.get(key, self.defaults.get(key)) is not None]
        if not found:
            self.unknown.append("the longest context, which config.json does not name")
        return min(found, default=2048)

    def longest(self) -> int:
        """Return the length that vLLM derives (config/model.py:2527 _get_and_verify_max_len)."""
        applied = "gemma3" not in self.kind and self.scaling()[0] not in {"su", "longrope", "llama3", *_YARN, "deepseek_llama_scaling"}
        return int(self.positions() * self.scaling()[1]) if applied else self.positions()

    def rotary_positions(self) -> int:
        """Return the number of rows of the table of sines and cosines (layers/rotary_embedding), which grows with the scaling factor."""
        kind, factor = self.scaling()
        if kind in _YARN:
            original = self.rotary().get("original_max_position_embeddings")
            if isinstance(original, int) and 1 <= original <= self.positions():
                return int(original * factor)
            return int(self.positions() * factor)
        return int(self.positions() * factor) if kind == "linear" else self.positions()

    def rotary(self) -> dict[str, Any]:
        given = self.values.get("rope_scaling") or self.values.get("rope_parameters")
        if not isinstance(given, dict):
            return {}
        nested = given.get("full_attention")  # of transformers 5: one for each kind of layer
        return nested if isinstance(nested, dict) else given

    def scaling(self) -> tuple[str, float]:
        """Return the kind and the factor of the rotary embedding's scaling."""
        given = self.rotary()
        kind, factor = given.get("rope_type", given.get("type", "default")), given.get("factor", 1)
        usable = isinstance(factor, int | float) and not isinstance(factor, bool) and math.isfinite(factor) and 1 <= factor <= 1024
        return str(kind), float(factor) if usable else 1

    def bounded(self, key: str) -> int:
        value = self.values.get(key, self.defaults.get(key))
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _MOST["max_position_embeddings"]:
            raise self.flaw(key, "a whole number of tokens")
        return value

    def windows(self, layers: int, family: str) -> tuple[int, ...]:
        window = self.optional("sliding_window") or 0
        if self.kind in {"qwen2", "qwen3", "qwen3_moe"} and not self.flag("use_sliding_window"):
            window = 0
        kinds = self.values.get("layer_types")
        if kinds is not None:
            if not isinstance(kinds, list) or len(kinds) < layers or not all(isinstance(kind, str) for kind in kinds):
                raise self.flaw("layer_types", "a list with the kind of each layer")
            for kind in sorted(set(kinds[:layers]) - {"full_attention", "sliding_attention"}):
                self.unknown.append(f"layers of kind {kind[:40]}")
            return tuple(window if kind == "sliding_attention" else 0 for kind in kinds[:layers])
        if not window:
            return (0,) * layers
        if family == "gemma2":  # transformers: every other layer, the first is one
            return tuple(window if layer % 2 == 0 else 0 for layer in range(layers))
        if family == "gemma3":
            pattern = self.count("sliding_window_pattern", 6)
            return tuple(0 if (layer + 1) % pattern == 0 else window for layer in range(layers))
        if family == "gpt_oss":
            return tuple(window if layer % 2 == 0 else 0 for layer in range(layers))
        first = self.count("max_window_layers", layers, least=0) if self.kind.startswith("qwen") else 0
        return tuple(window if layer >= first else 0 for layer in range(layers))

    def experts(self, layers: int, family: str) -> Experts | None:
        key = next((key for key in ("n_routed_experts", "num_local_experts", "num_experts") if self.optional(key)), "")
        if not key:
            return None
        own = self.optional("moe_intermediate_size")
        each = own or self.count("intermediate_size")
        first = self.optional("first_k_dense_replace") or 0
        step = self.optional("moe_layer_freq") or self.optional("decoder_sparse_step") or 1
        dense = self.values.get("mlp_only_layers") or []
        if not isinstance(dense, list) or not all(isinstance(layer, int) for layer in dense):
            raise self.flaw("mlp_only_layers", "a list of layers")
        shift = 1 if family == "qwen3_moe" else 0  # qwen3_moe.py: (layer + 1) % step; deepseek_v2.py: layer % step
        with_experts = frozenset(i for i in range(first, layers) if i not in dense and (i + shift) % step == 0)
        return Experts(
            count=self.count(key),
            per_token=self.count("num_experts_per_tok", 1),
            intermediate=each,
            shared_intermediate=each * (self.optional("n_shared_experts") or 0),
            layers=with_experts,
            correction_bias=family == "glm4_moe" or self.values.get("topk_method") == "noaux_tc",
        )

    def latent(self) -> LatentAttention:
        return LatentAttention(
            q_rank=(self.optional("q_lora_rank") or 0) if "q_lora_rank" in self.values else self.count("q_lora_rank", 1536),
            kv_rank=self.count("kv_lora_rank", 512),
            rope_dim=self.count("qk_rope_head_dim", 64),
            nope_dim=self.count("qk_nope_head_dim", 128),
            v_dim=self.count("v_head_dim", 128),
        )

    def quantization(self) -> Quantization | None:
        given = self.values.get("quantization_config") or self.outer.get("quantization_config") or self.outer.get("compression_config")
        if given is None:
            return None
        if not isinstance(given, dict):
            raise self.flaw("quantization_config", "a JSON object")
        method = given.get("quant_method", "")
        if not isinstance(method, str) or not re.fullmatch(r"[\w.-]{1,40}", method):
            raise self.flaw("quantization_config.quant_method", "the name of a method")
        part = QuantizationReader(given, self)
        readers = {
            **dict.fromkeys(("gptq", "gptq_marlin"), part.gptq),
            **dict.fromkeys(("awq", "awq_marlin"), part.awq),
            "fp8": part.fp8,
            "mxfp4": part.mxfp4,
            "compressed-tensors": part.compressed,
        }
        if read := readers.get(method):
            return read()
        self.unknown.append(f"quantisation {method}")
        return Quantization(method)
