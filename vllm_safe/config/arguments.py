"""The settings that are passed on to a model's server: `args`, `env` and `command`. They are data; no shell interprets them."""

from __future__ import annotations

import re
from collections.abc import Mapping as Dictionary
from math import inf
from types import MappingProxyType
from typing import Any

from vllm_safe.config.document import Mapping, Node, Scalar, Sequence, quote_value
from vllm_safe.config.mismatch import Mismatch, MismatchError, is_null, mismatch, node_text

# Options that the package passes to vLLM itself, each with the setting to use instead.
_OURS = MappingProxyType(
    {
        "api-key": "the setting api_key_file: every user can read a key that is written here",
        "config": "the content of that file here, below args",
        "hf-token": "the setting hub_token_file of the section engine: every user can read a token that is written here",
        "host": "the setting host of the model",
        "model": "the setting model of the model",
        "model-tag": "the setting model of the model",
        "port": "the setting port of the model",
        "served-model-name": "the model's name in `models`: clients request it by that name",
        "uds": "the settings host and port of the model",
    }
)

# Options that vLLM 0.32 no longer has. With one of them it exits at once: "unrecognized arguments".
_GONE = MappingProxyType(
    {
        "disable-log-requests": "vLLM no longer has this option; it logs requests only if enable-log-requests is set",
        "swap-space": "vLLM no longer has this option, which never referred to the machine's swap",
    }
)

# Options of `vllm serve` that follow from the setting `nodes`.
NODE_OPTIONS = ("nnodes", "node-rank", "master-addr", "master-port", "headless", "distributed-executor-backend")

SHORT_OPTIONS = MappingProxyType(
    {"tp": "tensor-parallel-size", "pp": "pipeline-parallel-size", "dp": "data-parallel-size", "q": "quantization"}
)

# Variables that hold a secret: anybody may read a unit's Environment=, and `show` prints the rest.
SECRETS = MappingProxyType(
    {
        "VLLM_API_KEY": "the setting api_key_file of the model",
        "HF_TOKEN": "the setting hub_token_file of the section engine",
        "HUGGING_FACE_HUB_TOKEN": "the setting hub_token_file of the section engine",
        "HUGGINGFACE_HUB_TOKEN": "the setting hub_token_file of the section engine",
    }
)

_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]{0,18})((?:\.[0-9]{1,40})?(?:[eE][+-]?[0-9]{1,3})?)")  # a number as in JSON


def read_args(node: Node) -> Dictionary[str, Any]:
    """Read options of `vllm serve`, with values of JSON's types. Raises MismatchError."""
    if is_null(node):
        return MappingProxyType({})
    if not isinstance(node, Mapping):
        suggestion = "tensor-parallel-size: 8" if isinstance(node, Scalar) and node.text.startswith("-") else ""
        raise mismatch(node, suggestion)
    flaws: list[Mismatch] = []
    values = {}
    for key, value in node.items:
        if flaw := _option_flaw(key):
            flaws.append(flaw)
        if is_null(value):
            flaws.append(Mismatch(value, f"has no value for {quote_value(key.text)}", "a value, or true for an option that takes none"))
        try:
            values[key.text] = _json(value)
        except MismatchError as error:
            flaws += error.flaws
    if flaws:
        raise MismatchError(*flaws)
    return MappingProxyType(values)


def _option_flaw(key: Scalar) -> Mismatch | None:
    head, dot, rest = key.text.partition(".")
    tidy = head.strip().lstrip("-").replace("_", "-").lower()
    if instead := _OURS.get(tidy):
        return Mismatch(key, f"cannot have {quote_value(key.text)}, which vllm-safe sets", instead)
    if why := _GONE.get(tidy):
        return Mismatch(key, f"cannot have {quote_value(key.text)}: {why}", "this line to be removed")
    if known := SHORT_OPTIONS.get(tidy):
        return Mismatch(key, f"cannot have {quote_value(key.text)}", "an option by its long name", known)
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", head) or (dot and not re.fullmatch(r"[A-Za-z0-9_.-]+", rest)):
        usable = re.fullmatch(r"[a-z0-9][a-z0-9-]*", tidy)
        expected = "an option such as max-model-len, without leading dashes"
        return Mismatch(key, f"cannot have {quote_value(key.text)}", expected, tidy + dot + rest if usable else "")
    return None


def _json(node: Node) -> object:
    """Read a value whose type matters. Raises MismatchError.

    A number as in JSON is a number, also where YAML 1.1 reads a text (1e-5). Other values whose type depends on the reader are refused.
    """
    if isinstance(node, Mapping):
        return {key.text: _json(value) for key, value in node.items}
    if isinstance(node, Sequence):
        return [_json(item) for item in node.items]
    if node.tag == "null":
        return None
    if node.tag == "bool":
        if node.text not in {"true", "false", "True", "False", "TRUE", "FALSE"}:
            expected = "true or false, or a text in quotes: YAML reads this word as true or false"
            raise mismatch(node, f"true, false or '{node.text}'", expected)
        return node.text.lower() == "true"
    number = None if node.quoted else _NUMBER.fullmatch(node.text)
    if number and abs(float(node.text)) < inf:
        return float(node.text) if number[1] else int(node.text)
    if number or node.tag in {"int", "float"}:
        raise mismatch(node, f"'{node.text}'", "a plain decimal number, or a text in quotes: YAML reads this as another number")
    return node.text


def read_env(node: Node) -> Dictionary[str, str]:
    """Read environment variables; each value is exactly the text in the file. Raises MismatchError."""
    if is_null(node):
        return MappingProxyType({})
    if not isinstance(node, Mapping):
        raise mismatch(node)
    flaws: list[Mismatch] = []
    values = {}
    for key, value in node.items:
        name = key.text
        if instead := SECRETS.get(name):
            flaws.append(Mismatch(key, f"cannot have {name}: it is a secret, and every user can read this file", instead))
        elif not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,254}", name):
            tidy = name.strip().removeprefix("export ").replace("-", "_")
            usable = re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", tidy)
            flaws.append(Mismatch(key, f"cannot have {quote_value(name)}", "a name of letters, digits and _", tidy if usable else ""))
        if not isinstance(value, Scalar):
            flaws.append(Mismatch(value, f"cannot have a list or section for {quote_value(name)}", "a text or a number"))
        elif is_null(value):
            flaws.append(Mismatch(value, f"has no value for {quote_value(name)}", "a text; '' is the empty text"))
        else:
            values[name] = value.text
    if flaws:
        raise MismatchError(*flaws)
    return MappingProxyType(values)


def read_command(node: Node) -> tuple[str, ...]:
    """Read a program and its arguments, each exactly as written. Raises MismatchError."""
    if isinstance(node, Scalar) and not is_null(node) and node.text.strip():
        raise mismatch(node, f"[{', '.join(node.text.split())}]" if len(node.text) < 100 else "")
    if not isinstance(node, Sequence):
        raise mismatch(node)
    if not node.items:
        raise MismatchError(Mismatch(node, "is empty"))
    odd = [item for item in node.items if not isinstance(item, Scalar) or is_null(item)]
    if odd:
        raise MismatchError(*(Mismatch(item, "has an item that is not a text", "a program or an argument, in quotes") for item in odd))
    words = tuple(node_text(item) for item in node.items)
    if not words[0].strip() or ("/" in words[0] and not words[0].startswith("/")):
        raise MismatchError(
            Mismatch(node.items[0], f"cannot begin with {quote_value(words[0])}", "the name or the absolute path of a program")
        )
    if any(word.split("=")[0] == "--api-key" for word in words):
        raise MismatchError(Mismatch(node, "cannot have --api-key, which `ps` shows to every user", "the setting api_key_file"))
    return words
