"""The scanner against a JSON parser."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_safe.gateway.body_scanner import LONGEST_VALUE, BodyScanner

WANTED = ("model", "stream")
keys = st.sampled_from(["model", "stream", "x", 'mod"el', "\\model", "ü", ""]) | st.text(max_size=5)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=8,
)


def scan(text: bytes, size: int = 1 << 16) -> BodyScanner:
    scanner = BodyScanner(WANTED)
    for begin in range(0, len(text), size):
        scanner.feed(text[begin : begin + size])
    return scanner


def flat(value: object) -> bool:
    return not isinstance(value, list | dict) and value is not None


@given(given=st.dictionaries(keys, values, max_size=6), size=st.integers(1, 20), plain=st.booleans(), indent=st.sampled_from([None, 1]))
def test_it_finds_what_a_json_parser_finds(given: dict[str, object], size: int, *, plain: bool, indent: int | None) -> None:
    scanner = scan(json.dumps(given, ensure_ascii=plain, indent=indent).encode(), size)
    assert scanner.found == {key: given[key] for key in WANTED if key in given and flat(given[key])}
    assert scanner.complete
    assert scanner.ended or len(scanner.found) == len(WANTED)


@given(text=st.binary(max_size=60) | st.text(alphabet='{}[]",:\\ model', max_size=60).map(str.encode), size=st.integers(1, 9))
def test_it_stands_any_text_in_any_pieces(text: bytes, size: int) -> None:
    whole, pieces = scan(text), scan(text, size)
    assert (whole.found, whole.ended, whole.bad) == (pieces.found, pieces.ended, pieces.bad)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (b'{"mod\\u0065l": "a"}', {"model": "a"}),
        (b'\xef\xbb\xbf {"model": "\\"a\\\\"}', {"model": '"a\\'}),
        (b'{"model": "a", "model": "b"}', {"model": "a"}),  # the first one: the rest may not have come yet
        (b'{"x": {"model": "b"}, "y": ["model", "c"], "model": "a"}', {"model": "a"}),
        (b'{"x": "\\"model\\": \\"b\\"", "model": "a"}', {"model": "a"}),
        (b'{"stream": true, "model": "a"}', {"model": "a", "stream": True}),
        (b'{"stream": tru', {}),
        (b'{"stream": truth}', {}),
        (b'{"model": "\xff"}', {}),
        (b'{"model": "%s"}' % (b"a" * LONGEST_VALUE), {"model": "a" * LONGEST_VALUE}),
        (b'{"model": "%s"}' % (b"a" * (LONGEST_VALUE + 1)), {}),
    ],
)
def test_examples(text: bytes, found: dict[str, object]) -> None:
    assert scan(text).found == found
    assert scan(text, 1).found == found


@pytest.mark.parametrize("text", [b"[]", b'"model"', b"model=a", b"\x00"])
def test_what_is_no_object_is_bad(text: bytes) -> None:
    assert scan(text).bad


def test_a_large_string_is_not_kept() -> None:
    scanner = BodyScanner(WANTED)
    scanner.feed(b'{"x": "')
    for _ in range(1000):
        scanner.feed(b"y" * 65536)
    assert scanner._kept is None
    scanner.feed(b'", "model": "a"}')
    assert scanner.found == {"model": "a"}
