"""What a model passes on to its server: `args`, `env` and `command`. All of it is data, never read by a shell."""

from __future__ import annotations

import re
from collections.abc import Mapping as Dictionary
from math import inf
from types import MappingProxyType
from typing import Any

from vllm_safe.config.document import Mapping, Node, Scalar, Sequence, shown
from vllm_safe.config.flaw import Flaw, Flawed, is_nothing, misfit, text_of

# Options that the package gives vLLM itself, and where they are set instead.
_OURS = MappingProxyType(
    {
        "api-key": "the setting api_key_file: a key written here can be read by everybody",
        "config": "the content of that file here, below args",
        "hf-token": "the setting hub_token_file of the section engine: a token written here can be read by everybody",
        "host": "the setting host of the model",
        "model": "the setting model of the model",
        "model-tag": "the setting model of the model",
        "port": "the setting port of the model",
        "served-model-name": "the name in `models`: it is the one that clients ask for",
        "uds": "the settings host and port of the model",
    }
)

# Options that vLLM 0.32 has no more: it ends at once with "unrecognized arguments".
_GONE = MappingProxyType(
    {
        "disable-log-requests": "vLLM logs no requests today unless enable-log-requests is set",
        "swap-space": "vLLM has no such option any more, and it never meant the machine's swap",
    }
)

_SHORT = MappingProxyType({"tp": "tensor-parallel-size", "pp": "pipeline-parallel-size", "dp": "data-parallel-size", "q": "quantization"})

# Variables that hold a secret: anybody may read a unit's Environment=, and `show` prints the rest.
SECRETS = MappingProxyType(
    {
        "VLLM_API_KEY": "the setting api_key_file of the model",
        "HF_TOKEN": "the setting hub_token_file of the section engine",
        "HUGGING_FACE_HUB_TOKEN": "the setting hub_token_file of the section engine",
        "HUGGINGFACE_HUB_TOKEN": "the setting hub_token_file of the section engine",
    }
)

_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]{0,18})((?:\.[0-9]{1,40})?(?:[eE][+-]?[0-9]{1,3})?)")  # JSON's


def read_args(node: Node) -> Dictionary[str, Any]:
    """Options of `vllm serve` with their values as JSON has them."""
    if is_nothing(node):
        return MappingProxyType({})
    if not isinstance(node, Mapping):
        suggestion = "tensor-parallel-size: 8" if isinstance(node, Scalar) and node.text.startswith("-") else ""
        raise misfit(node, suggestion)
    flaws: list[Flaw] = []
    values = {}
    for key, value in node.items:
        if flaw := _option_flaw(key):
            flaws.append(flaw)
        if is_nothing(value):
            flaws.append(Flaw(value, f"has no value for {shown(key.text)}", "a value, or true for an option without one"))
        try:
            values[key.text] = _json(value)
        except Flawed as error:
            flaws += error.flaws
    if flaws:
        raise Flawed(*flaws)
    return MappingProxyType(values)


def _option_flaw(key: Scalar) -> Flaw | None:
    head, dot, rest = key.text.partition(".")
    tidy = head.strip().lstrip("-").replace("_", "-").lower()
    if instead := _OURS.get(tidy):
        return Flaw(key, f"cannot have {shown(key.text)}, which the package sets", instead)
    if why := _GONE.get(tidy):
        return Flaw(key, f"cannot have {shown(key.text)}: {why}", "the line to be taken out")
    if known := _SHORT.get(tidy):
        return Flaw(key, f"cannot have {shown(key.text)}", "an option by its long name", known)
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", head) or (dot and not re.fullmatch(r"[A-Za-z0-9_.-]+", rest)):
        usable = re.fullmatch(r"[a-z0-9][a-z0-9-]*", tidy)
        expected = "an option as in max-model-len, without dashes before it"
        return Flaw(key, f"cannot have {shown(key.text)}", expected, tidy + dot + rest if usable else "")
    return None


def _json(node: Node) -> object:
    """A value whose type matters. What YAML 1.1 and its readers disagree on is refused rather than guessed."""
    if isinstance(node, Mapping):
        return {key.text: _json(value) for key, value in node.items}
    if isinstance(node, Sequence):
        return [_json(item) for item in node.items]
    if node.tag == "null":
        return None
    if node.tag == "bool":
        if node.text not in {"true", "false", "True", "False", "TRUE", "FALSE"}:
            expected = "true or false, or a text in quotes: this word is true or false to YAML"
            raise misfit(node, f"true, false or '{node.text}'", expected)
        return node.text.lower() == "true"
    number = None if node.quoted else _NUMBER.fullmatch(node.text)
    if number and abs(float(node.text)) < inf:
        return float(node.text) if number[1] else int(node.text)
    if number or node.tag in {"int", "float"}:
        raise misfit(node, f"'{node.text}'", "a plain decimal number, or a text in quotes: this is another number to YAML")
    return node.text


def read_env(node: Node) -> Dictionary[str, str]:
    """Environment variables: exactly the texts that are written."""
    if is_nothing(node):
        return MappingProxyType({})
    if not isinstance(node, Mapping):
        raise misfit(node)
    flaws: list[Flaw] = []
    values = {}
    for key, value in node.items:
        name = key.text
        if instead := SECRETS.get(name):
            flaws.append(Flaw(key, f"cannot have {name}, a secret in a file that everybody can read", instead))
        elif not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,254}", name):
            tidy = name.strip().removeprefix("export ").replace("-", "_")
            usable = re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", tidy)
            flaws.append(Flaw(key, f"cannot have {shown(name)}", "a name of letters, digits and _", tidy if usable else ""))
        if not isinstance(value, Scalar):
            flaws.append(Flaw(value, f"cannot have a list or section for {shown(name)}", "a text or a number"))
        elif is_nothing(value):
            flaws.append(Flaw(value, f"has no value for {shown(name)}", "a text; '' is the empty one"))
        else:
            values[name] = value.text
    if flaws:
        raise Flawed(*flaws)
    return MappingProxyType(values)


def read_command(node: Node) -> tuple[str, ...]:
    """A program and its arguments, each as written."""
    if isinstance(node, Scalar) and not is_nothing(node) and node.text.strip():
        raise misfit(node, f"[{', '.join(node.text.split())}]" if len(node.text) < 100 else "")
    if not isinstance(node, Sequence):
        raise misfit(node)
    if not node.items:
        raise Flawed(Flaw(node, "is empty"))
    odd = [item for item in node.items if not isinstance(item, Scalar) or is_nothing(item)]
    if odd:
        raise Flawed(*(Flaw(item, "has something else than a text here", "a program or argument, in quotes") for item in odd))
    words = tuple(text_of(item) for item in node.items)
    if not words[0].strip() or ("/" in words[0] and not words[0].startswith("/")):
        raise Flawed(Flaw(node.items[0], f"cannot begin with {shown(words[0])}", "a program by its name or its whole path"))
    if any(word.split("=")[0] == "--api-key" for word in words):
        raise Flawed(Flaw(node, "cannot have --api-key, which `ps` shows to everybody", "the setting api_key_file"))
    return words
