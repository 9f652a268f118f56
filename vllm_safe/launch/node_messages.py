"""The messages between the main processes of one model on several machines: lines of JSON, none of them a command. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

LONGEST_MESSAGE = 1 << 16  # bytes of a message, which is one line
_LONGEST_TEXT = 2000  # characters of a text that is shown to people


class Hello(NamedTuple):
    """The first message of a machine. agreed: the values that must be the same on all machines, by name."""

    model: str
    node: str
    agreed: Mapping[str, str]


class Go(NamedTuple):
    """The message of the first machine that all are connected: each starts its server."""


class Alive(NamedTuple):
    """The message that each machine sends every few seconds. still: seconds without progress of its start."""

    phase: str
    still: float
    text: str  # the last STATUS=


class Farewell(NamedTuple):
    """The message of a machine whose server ends. text: one sentence that names the machine that was the cause.

    never: no further start can work. elsewhere: the server lost a connection to another machine, which may soon report the cause.
    """

    text: str
    never: bool
    elsewhere: bool = False


NodeMessage = Hello | Go | Alive | Farewell
_KINDS: Mapping[str, type[NodeMessage]] = {kind.__name__.lower(): kind for kind in (Hello, Go, Alive, Farewell)}


def encode_message(message: NodeMessage) -> bytes:
    """Return the line of a message."""
    return json.dumps({"kind": type(message).__name__.lower(), **message._asdict()}, ensure_ascii=True).encode() + b"\n"


def decode_message(line: bytes) -> NodeMessage | None:
    """Read a line, which may contain anything. Return None if it is not a message. Unknown keys, of a later version, are ignored."""
    try:
        values = json.loads(line)
        kind = _KINDS[values["kind"]]
        return kind(**{name: _checked(name, values[name]) for name in kind._fields})
    except (ValueError, TypeError, LookupError, RecursionError):
        return None


def _checked(name: str, value: object) -> Any:  # noqa: ANN401 - of the type of the field
    """Return a value of the type that its field has. Raises TypeError."""
    if name == "agreed" and isinstance(value, dict):
        return {_text(key): _text(each) for key, each in value.items()}
    if name in {"never", "elsewhere"} and isinstance(value, bool):
        return value
    if name == "still" and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if name in {"agreed", "never", "elsewhere", "still"}:
        raise TypeError(name)
    return _text(value)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    return "".join(letter if letter.isprintable() else "?" for letter in value[:_LONGEST_TEXT])
