"""Types of settings: how a value is read from YAML, the message for a value that does not fit, and how a value is written.

A value is read from its text, not as its YAML 1.1 type: YAML reads 1:30 as 90, NO as false and 0.10 as 0.1.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from vllm_safe.common.sizes import MIB, TIB, Amount, format_exact, format_exact_span, parse_amount, parse_size, parse_span
from vllm_safe.config import arguments, string_types
from vllm_safe.config.document import Node, Scalar, Sequence
from vllm_safe.config.mismatch import Mismatch, MismatchError, is_null, mismatch, node_text
from vllm_safe.config.power_types import read_power_caps, write_power_caps
from vllm_safe.config.profiles import PROFILES
from vllm_safe.contract.guard_file import MOST_FREEZE

MOST_BYTES = 1024 * TIB
_DAY = 86400


@dataclass(frozen=True)
class ValueType:
    """How values of a setting are read and written.

    expected: the valid values in words, to follow "expected ". read: return the value of a node, or raise MismatchError. write: return
    a value as YAML. choices: all valid values, where they can be listed.
    """

    expected: str
    read: Callable[[Node], Any]
    write: Callable[[Any], str] = str
    choices: tuple[str, ...] = ()


def _or(word: str, kind: ValueType) -> ValueType:
    """Return the same type, extended by `word`, which stands for None."""

    def read(node: Node) -> object:
        if is_null(node) or (isinstance(node, Scalar) and node.text.strip().lower() == word):
            return None
        return kind.read(node)

    return ValueType(f"{kind.expected}, or {word}", read, lambda value: word if value is None else kind.write(value))


# --- numbers


def whole_number(low: int, high: int, what: str = "a whole number") -> ValueType:
    """Return the type of whole numbers from `low` to `high`. `what` names them in messages."""

    def read(node: Node) -> int:
        text = node_text(node)
        plain = re.fullmatch(r"[+-]?[0-9]{1,18}", text)
        if plain and not re.match(r"[+-]?0[0-9]", text) and low <= int(text) <= high:
            return int(text)
        digits = re.sub(r"[ ,_']|\.0*$", "", text)
        tidy = str(int(digits)) if re.fullmatch(r"[+-]?[0-9]{1,18}", digits) and low <= int(digits) <= high else ""
        raise mismatch(node, tidy)

    return ValueType(f"{what} from {low} to {high}", read)


def _boolean(node: Node) -> bool:
    word = node_text(node).lower()
    if word in {"true", "yes", "on"}:
        return True
    if word in {"false", "no", "off"}:
        return False
    raise mismatch(node, {"1": "true", "enabled": "true", "0": "false", "disabled": "false", "none": "false"}.get(word, ""))


def _percent(node: Node) -> float:
    """Read a percentage for earlyoom. It does not accept 0; `enabled: false` turns it off. Raises MismatchError."""
    if not (match := re.fullmatch(r"\s*([0-9]{1,3}(?:\.[0-9]{1,6})?)\s*%?\s*", node_text(node))) or not 0 < float(match[1]) <= 100:
        raise mismatch(node)
    return float(match[1])


# --- sizes and times


def _suspect(node: Node, text: str, *, percent: bool) -> None:
    """Refuse a small number without a unit: nobody means 128 bytes of swap or 90 bytes of RAM. Raises MismatchError."""
    if re.fullmatch(r"\s*[0-9.]+\s*", text) and 0 < (number := float(text)) < MIB:
        guesses = [f"{number * 100:g}%"] if percent and number < 1 else [f"{number:g}%"] * (percent and number <= 100)
        guesses += [f"{number:g}G"] * (number >= 1)
        raise MismatchError(Mismatch(node, f"cannot be {number:g} bytes", "", " or ".join(guesses)))


def _retyped(text: str) -> str:
    """Return the size that was probably meant by a text such as "128Gi", "1,5 G" or "128 gigs", or ""."""
    match = re.match(r"\s*([0-9]+(?:[.,][0-9]+)?)\s*([kmgt])", text, re.IGNORECASE | re.ASCII)
    return f"{match[1].replace(',', '.')}{match[2].upper()}" if match else ""


def _size(node: Node) -> int:
    text = node_text(node)
    try:
        size = parse_size(text)
    except (ValueError, OverflowError):
        raise mismatch(node, _retyped(text) or ("none" if text.lower() in {"no", "off", "false"} else "")) from None
    _suspect(node, text, percent=False)
    if not MIB <= size <= MOST_BYTES:
        raise mismatch(node, "" if size else "none")
    return size


def _amount(node: Node) -> Amount:
    text = node_text(node)
    try:
        amount = parse_amount(text)
    except (ValueError, OverflowError):
        raise mismatch(node, _retyped(text)) from None
    _suspect(node, text, percent=True)
    if amount.is_percent and amount.value > 100:
        raise MismatchError(Mismatch(node, f"cannot be {amount}, which is more than all of it", "at most 100%, or a size such as 12G"))
    if amount.value > MOST_BYTES:
        raise mismatch(node)
    return amount


def _span(low: float, high: float = 30 * _DAY) -> Callable[[Node], float]:
    def read(node: Node) -> float:
        text = node_text(node)
        try:
            seconds = parse_span(text)
        except (ValueError, OverflowError):
            clock = re.fullmatch(r"([0-9]{1,4}):([0-5][0-9])", text)
            parts = int(clock[1]) * 60 + int(clock[2]) if clock else 0
            raise mismatch(node, f"{parts}s or {parts}min" if parts else "") from None
        if not low <= seconds <= high:
            raise mismatch(node)
        return seconds

    return read


# --- cards

_MOST_CARDS = 64  # in one machine


def _cards(node: Node) -> tuple[int, ...]:
    """Read the numbers of GPUs, in the order in which the server sees them. Raises MismatchError."""
    if isinstance(node, Scalar):
        raise mismatch(node, f"[{', '.join(re.findall(r'[0-9]+', node.text))}]" if re.fullmatch(r"[0-9][0-9, ]*", node.text) else "")
    if not isinstance(node, Sequence):
        raise mismatch(node)
    if not node.items:
        raise MismatchError(Mismatch(node, "is empty", "at least one GPU, or `all`"))
    card = whole_number(0, _MOST_CARDS - 1, "the number of a GPU")
    found: dict[int, Node] = {}
    flaws: list[Mismatch] = []
    for item in node.items:
        try:
            number = card.read(item)
        except MismatchError as error:
            flaws += (replace(flaw, expected=flaw.expected or card.expected) for flaw in error.flaws)
            continue
        if number in found:
            flaws.append(Mismatch(item, f"has GPU {number} twice", "each GPU once"))
        found[number] = item
    if flaws:
        raise MismatchError(*flaws)
    return tuple(found)


# --- machines

_MOST_NODES = 64


def _nodes(node: Node) -> tuple[str, ...]:
    """Read the host names of several machines, each once. Raises MismatchError."""
    if isinstance(node, Scalar):
        raise mismatch(node, f"[{', '.join(node.text.replace(',', ' ').split())}]" if re.search(r"[ ,]", node.text.strip()) else "")
    if not isinstance(node, Sequence):
        raise mismatch(node)
    if not 2 <= len(node.items) <= _MOST_NODES:
        how_many = "one machine" if len(node.items) == 1 else f"{len(node.items)} machines"
        raise MismatchError(Mismatch(node, f"has {how_many}", f"2 to {_MOST_NODES}"))
    found: dict[str, Node] = {}
    flaws: list[Mismatch] = []
    for item in node.items:
        try:
            name = string_types.read_node_name(item)
        except MismatchError as error:
            flaws += (replace(flaw, expected=flaw.expected or "the host name of a machine, such as gpu1") for flaw in error.flaws)
            continue
        if name.lower() in found:
            flaws.append(Mismatch(item, f"has {name} twice", "each machine once"))
        found[name.lower()] = item
    if flaws:
        raise MismatchError(*flaws)
    return tuple(found)


# --- words, and the types by name


def one_of(*words: str) -> ValueType:
    """Return the type of a few words. For any other word, the reader finds the one that was probably meant."""

    def read(node: Node) -> str:
        if node_text(node) not in words:
            raise mismatch(node)
        return node_text(node)

    return ValueType(" or ".join(words), read, choices=words)


def _in_quotes(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _section(node: Node) -> object:
    raise mismatch(node)  # the reader reads sections itself, and calls this only for a node that is not a section


BOOLEAN = ValueType("true or false", _boolean, lambda value: str(value).lower())
PERCENT = ValueType("a percentage above 0%, up to 100%", _percent, lambda value: f"{value:g}%")
SIZE_OR_NONE = _or("none", ValueType("a size from 1M to 1024T, such as 128G", _size, format_exact))
AMOUNT = ValueType("a size such as 12G, or a percentage such as 90%", _amount)
AMOUNT_OR_AUTO = _or("auto", AMOUNT)
SPAN = ValueType("a time from 1s to 30d, such as 90s, 15min or 2h", _span(1), format_exact_span)
SPAN_OR_NONE = _or("none", SPAN)
GRACE = ValueType("a time from 0s to 30d, such as 90s, 15min or 2h", _span(0), format_exact_span)
WINDOW = ValueType("a time from 1s to 10min", _span(1, 600), format_exact_span)
FREEZE = ValueType(f"a time from 1s to {MOST_FREEZE:g}s", _span(1, MOST_FREEZE), format_exact_span)
PORT = whole_number(1024, 65535, "a port")  # ports below 1024 need CAP_NET_BIND_SERVICE, which a model does not have
HOST = ValueType("an address such as 127.0.0.1, or the name of this machine", string_types.read_host_name)
ABSOLUTE_PATH = ValueType("an absolute path without ..", string_types.read_path)
PATH_OR_NONE = _or("none", ABSOLUTE_PATH)
PATTERN = ValueType("an extended regular expression such as ^(vllm|python3)$", string_types.read_pattern, _in_quotes)
VERSION = ValueType("a version such as 0.32.0", string_types.read_version)
URL_OR_NONE = _or("none", ValueType("a URL such as https://mirror.example/simple", string_types.read_url))
HTTP_URL_OR_NONE = _or("none", ValueType("a URL such as http://127.0.0.1:8000/health", string_types.read_http_url))
LINKS_OR_NONE = _or("none", ValueType("a URL, or an absolute path", string_types.read_links))
MODEL = ValueType("a hub id such as Qwen/Qwen2.5-72B-Instruct-GPTQ-Int8, or an absolute path", string_types.read_model_id)
IO_CLASS = one_of("idle", "best-effort")  # not realtime, which would have precedence over logins
PROFILE = one_of(*PROFILES)
ARGV = ValueType("a list such as [/usr/bin/llama-server, --port, '8001']", arguments.read_command)
ARGS = ValueType("options of `vllm serve` such as max-model-len: 8192", arguments.read_args)
ENV = ValueType("variables such as NCCL_DEBUG: INFO", arguments.read_env)
GPUS_OR_ALL = _or("all", ValueType("a list of GPU numbers such as [0, 1]", _cards, lambda value: f"[{', '.join(map(str, value))}]"))
NODES_OR_NONE = _or(
    "none",
    ValueType("a list of host names such as [gpu1, gpu2]", _nodes, lambda value: f"[{', '.join(map(string_types.write_name, value))}]"),
)
POWER_CAPS_OR_NONE = _or(
    "none", ValueType("a limit such as 170W or 75%, or a limit for each GPU such as {0: 170W, 1: 75%}", read_power_caps, write_power_caps)
)
SECTION = ValueType("a section, with its settings indented in the lines below", _section)
