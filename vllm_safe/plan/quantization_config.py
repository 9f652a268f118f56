"""The quantisation of a model in its config.json. Each value is checked, since anybody can have written the file."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Protocol

from vllm_safe.common.errors import Failure

MOST_OTHERWISE = 1 << 16  # of a number that has no bound of its own
_MOST_NAMES = 10_000  # of modules that a quantisation leaves out: one expert layer can have hundreds
_MOST_PATTERNS = 200


@dataclass(frozen=True)
class Quantization:
    """How the weights of a checkpoint are stored.

    `method`: gptq, awq, fp8, mxfp4, compressed-tensors, or another that is not known here. `kind`: of a compressed tensor, "int" or
    "float". `group`: weights per scale along the inputs; 0: one for each output; -1: one for the whole tensor. `block`: of block-wise
    FP8. `skipped`: modules that are left as they are, as the file has them; see SkippedModules.
    """

    method: str
    bits: int = 16
    kind: str = "int"
    group: int = 0
    block: tuple[int, int] | None = None
    symmetric: bool = True
    activation_order: bool = False
    packed: bool = False
    static_activations: bool = False
    quantized_activations: bool = False
    head: bool = False  # the output layer is quantised, too
    skipped: tuple[str, ...] = ()


class ReadsConfig(Protocol):
    """The reader of the whole config.json."""

    unknown: list[str]  # features that the plan does not take into account

    def flaw(self, key: str, wanted: str) -> Failure:
        """Return the error for an invalid value. wanted: a description of valid ones."""
        ...


class QuantizationReader:
    """Reads the section `quantization_config`."""

    def __init__(self, values: dict[str, Any], config: ReadsConfig) -> None:
        self.values = values
        self.config = config

    def count(self, key: str, default: int, values: dict[str, Any] | None = None, *, least: int = -1) -> int:
        """Return a whole number of the section, or of `values` in it."""
        value = (self.values if values is None else values).get(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= MOST_OTHERWISE:
            raise self.config.flaw(f"quantization_config.{key}", "a whole number")
        return value

    def names(self, key: str) -> tuple[str, ...]:
        """Return a list of names and patterns of modules."""
        value = self.values.get(key) or []
        if not isinstance(value, list) or len(value) > _MOST_NAMES or not all(isinstance(name, str) for name in value):
            raise self.config.flaw(f"quantization_config.{key}", f"a list of at most {_MOST_NAMES} names")
        if sum(map(_is_pattern, value)) > _MOST_PATTERNS:
            raise self.config.flaw(f"quantization_config.{key}", f"a list with at most {_MOST_PATTERNS} patterns")
        if any(_is_pattern(name) and re.search(r"\(\?|\|", name) for name in value):
            self.config.unknown.append(f"some patterns of modules that are not quantised ({key})")
        return tuple(name[:500] for name in value)

    def gptq(self) -> Quantization:
        """Read the section of GPTQ."""
        rules = self.values.get("dynamic") or {}
        if not isinstance(rules, dict) or len(rules) > _MOST_PATTERNS:
            raise self.config.flaw("quantization_config.dynamic", "a JSON object of rules")
        if any(str(rule).startswith("+:") or not str(rule).startswith("-:") for rule in rules):
            self.config.unknown.append("modules of another quantisation than the rest (dynamic)")
        return Quantization(
            "gptq",
            bits=self.bits(self.count("bits", 4)),
            group=max(0, self.count("group_size", 128)),
            symmetric=self.values.get("sym") is not False,
            activation_order=self.values.get("desc_act") is True,
            packed=True,
            head=self.values.get("lm_head") is True,
            skipped=tuple(f"gptq:{str(rule)[2:][:500]}" for rule in rules if str(rule).startswith("-:")),
        )

    def bits(self, bits: int) -> int:
        """Return the bits of a weight. Raises Failure if vLLM does not support weights of that size."""
        if bits not in {2, 3, 4, 8}:
            raise self.config.flaw("quantization_config.bits", "2, 3, 4 or 8")
        return bits

    def awq(self) -> Quantization:
        """Read the section of AWQ."""
        return Quantization(
            "awq",
            bits=self.bits(self.count("bits", self.count("w_bit", 4))),
            group=max(0, self.count("group_size", self.count("q_group_size", 128))),
            symmetric=self.values.get("zero_point") is False,
            packed=True,
            skipped=self.names("modules_to_not_convert"),
        )

    def fp8(self) -> Quantization:
        """Read the section of FP8, by tensor or by block."""
        block = self.values.get("weight_block_size")
        if block is not None and not (isinstance(block, list) and len(block) == 2 and all(_is_side(side) for side in block)):
            raise self.config.flaw("quantization_config.weight_block_size", "two numbers from 1 to 4096")
        return Quantization(
            "fp8",
            bits=8,
            kind="float",
            group=-1,
            block=(block[0], block[1]) if block else None,
            static_activations=self.values.get("activation_scheme") == "static",
            quantized_activations=True,
            skipped=(*self.names("modules_to_not_convert"), *self.names("ignored_layers")),
        )

    def mxfp4(self) -> Quantization:
        """Read the section of MXFP4."""
        return Quantization("mxfp4", 4, "float", 32, skipped=self.names("modules_to_not_convert"))

    def compressed(self) -> Quantization:
        """Read the section of compressed-tensors, of which the first group counts."""
        groups = self.values.get("config_groups")
        if not isinstance(groups, dict) or not groups or not all(isinstance(group, dict) for group in groups.values()):
            raise self.config.flaw("quantization_config.config_groups", "a JSON object of groups")
        if len(groups) > 1:
            self.config.unknown.append("modules of another quantisation than the rest (config_groups)")
        group = next(iter(groups.values()))
        weights, inputs = group.get("weights"), group.get("input_activations")
        if not isinstance(weights, dict):
            raise self.config.flaw("quantization_config.config_groups.weights", "a JSON object")
        strategy = str(weights.get("strategy"))
        bits = self.count("num_bits", 8, weights, least=1)
        sizes = {"tensor": -1, "channel": 0, "group": self.count("group_size", 128, weights), "tensor_group": 16}
        block = weights.get("block_structure")
        sides = block if isinstance(block, list) and len(block) == 2 and all(_is_side(side) for side in block) else None
        if strategy not in sizes and not (strategy == "block" and sides):
            self.config.unknown.append(f"scales of kind {strategy[:40]}")
        if str(weights.get("actorder")).lower() in {"group", "true"}:
            self.config.unknown.append("activation order of compressed tensors")
        return Quantization(
            "compressed-tensors",
            bits=bits,
            kind="float" if weights.get("type") == "float" else "int",
            group=sizes.get(strategy, 0),
            block=(sides[0], sides[1]) if sides else None,
            symmetric=weights.get("symmetric") is not False,
            packed=str(self.values.get("format")) in {"pack-quantized", "nvfp4-pack-quantized"} or bits < 8,
            static_activations=isinstance(inputs, dict) and inputs.get("dynamic") is False,
            quantized_activations=isinstance(inputs, dict),
            skipped=self.names("ignore"),
        )


def _is_side(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 4096


class SkippedModules:
    """Tells which modules a quantisation leaves out: by names, parts of names, and patterns.

    The regular expressions of a file are not evaluated, since one can be made to run for ever. Instead, the words in them have to occur in
    the name, in the same order.
    """

    def __init__(self, quantization: Quantization | None) -> None:
        skipped = quantization.skipped if quantization else ()
        self.names = frozenset(name for name in skipped if not _is_pattern(name))
        self.patterns = [_words(pattern) for pattern in skipped if _is_pattern(pattern)]

    def has(self, module: str) -> bool:
        """Return whether the weights of this module are stored as they are."""
        parts = module.split(".")
        ends = range(len(parts) + 1)
        if any(".".join(parts[first:last]) in self.names for first in ends for last in ends[first + 1 :]):
            return True
        return any(_in_order(words, parts) for words in self.patterns)


def _is_pattern(name: str) -> bool:
    return name.startswith(("re:", "gptq:")) or "*" in name


def _words(pattern: str) -> list[str]:
    expression = re.sub(r"^(?:re|gptq):", "", pattern)
    return re.findall(r"[A-Za-z0-9_]+", re.sub(r"\\[a-zA-Z]", " ", expression))


def _in_order(words: list[str], parts: list[str]) -> bool:
    """Return whether all words are among the parts of a name, in their order."""
    left = iter(parts)
    return bool(words) and all(word in left for word in words)
