"""The demands of a model on a GPU: the type that it is computed in, and its quantisation.

They are in its config.json, which anybody may have written, and in the options of `vllm serve`. A plan refuses a config.json that it
does not understand (plan/config_json.py). Here, such a file asks for nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_LONGEST = 40  # characters of a name
_ALIASES = {"gptq_marlin": "gptq", "auto_gptq": "gptq", "awq_marlin": "awq", "auto_awq": "awq", "gpt_oss_mxfp4": "mxfp4"}


@dataclass(frozen=True)
class ModelNeeds:
    """The demands of a model. dtype: the type that it is computed in, "" if that is not known. chosen: the configuration sets it."""

    dtype: str = ""
    chosen: bool = False
    quantisation: str = ""  # vLLM's name of the method, "" if none
    float8: bool = False  # its weights are FP8
    kind: str = ""  # model_type


def needs_of(config: object, arguments: Mapping[str, Any]) -> ModelNeeds:
    """Return the demands of a model. config: its config.json. arguments: the options of `vllm serve`."""
    given: dict[str, Any] = config if isinstance(config, dict) else {}
    inner: dict[str, Any] = found if isinstance(found := given.get("text_config"), dict) else {}
    quantisation = given.get("quantization_config") or inner.get("quantization_config")
    method = str(quantisation.get("quant_method") or "") if isinstance(quantisation, dict) else ""
    method = str(arguments.get("quantization") or method).lower()[:_LONGEST]
    own = next((str(each[key]) for each in (given, inner) for key in ("torch_dtype", "dtype") if each.get(key)), "")[:_LONGEST]
    wanted = {"half": "float16", "float": "float32"}.get(str(arguments.get("dtype", "auto")), str(arguments.get("dtype", "auto")))
    float8 = "fp8" in method or (method == "compressed-tensors" and _has_float8(quantisation))
    kind = str(given.get("model_type") or "")[:_LONGEST]
    return ModelNeeds(own if wanted == "auto" else wanted, wanted != "auto", _ALIASES.get(method, method), float8, kind)


def _has_float8(quantisation: object) -> bool:
    """Whether a group of compressed-tensors has weights of 8 bits and type float: config_groups.NAME.weights."""
    groups = quantisation.get("config_groups") if isinstance(quantisation, dict) else None
    weights = [group.get("weights") for group in groups.values() if isinstance(group, dict)] if isinstance(groups, dict) else []
    return any(isinstance(each, dict) and each.get("type") == "float" and each.get("num_bits") == 8 for each in weights)
