"""Messages between the machines of a model arrive as they were sent, and nothing else is taken for one."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_safe.launch.node_messages import LONGEST_MESSAGE, Alive, Farewell, Go, Hello, NodeMessage, decode_message, encode_message


@pytest.mark.parametrize(
    "message",
    [
        Hello("big", "gpu2", {"the engine": "vllm 0.32.0", "args.dtype": "half"}),
        Go(),
        Alive("loading", 12.5, "loading, 3 min"),
        Farewell("gpu2 ended: größer als der Speicher", never=True),
        Farewell("gpu1 lost its connection", never=False, elsewhere=True),
    ],
)
def test_a_message_arrives_as_it_was_sent(message: NodeMessage) -> None:
    line = encode_message(message)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert decode_message(line) == message


def test_what_a_later_version_adds_is_ignored() -> None:
    values = json.loads(encode_message(Go()))
    assert decode_message(json.dumps(values | {"more": [1]}).encode()) == Go()


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"GET / HTTP/1.1",
        b"[]",
        b'{"kind": "run"}',
        b'{"kind": ["go"]}',
        b'{"kind": "alive", "phase": "ready", "still": true, "text": ""}',
        b'{"kind": "farewell", "text": "x", "never": 1, "elsewhere": false}',
        b'{"kind": "hello", "model": "big", "node": "gpu2", "agreed": {"a": 1}}',
        b'{"kind": "hello", "model": "big", "node": "gpu2", "agreed": []}',
        b"[" * LONGEST_MESSAGE,
    ],
)
def test_anything_else_is_not_a_message(line: bytes) -> None:
    assert decode_message(line) is None


@given(st.binary())
def test_no_bytes_raise(line: bytes) -> None:
    assert decode_message(line) is None


def test_a_text_is_short_and_cannot_steer_a_terminal() -> None:
    message = decode_message(encode_message(Farewell("\x1b[2J\n" + "x" * 10_000, never=False)))
    assert isinstance(message, Farewell)
    assert message.text.isprintable()
    assert len(message.text) == 2000
