"""The launch file: every decision arrives unchanged, and anything else is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_safe.contract.launch_file import Launch

texts = st.one_of(
    st.sampled_from(["", "$(reboot)", "; id", "%n", "a\nb", "'", '"', "\\", "\\n", "\u2028", "\x85", "\x1b[2J"]),
    st.text(st.characters(exclude_categories=["Cs"])),
)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=8)
KINDS: dict[object, st.SearchStrategy[object]] = {
    bool: st.booleans(),
    int: st.integers(),
    float: st.floats(allow_nan=False),
    str: texts,
    str | None: st.none() | texts,
    tuple[str, ...]: st.lists(texts, max_size=4).map(tuple),
    Mapping[str, str] | None: st.none() | st.dictionaries(texts, texts, max_size=4).map(MappingProxyType),
    Mapping[str, Any] | None: st.none() | st.dictionaries(texts, values, max_size=4),
}
FIELDS = {name: KINDS[kind] for name, kind in get_type_hints(Launch).items()}


@settings(deadline=None, max_examples=100)
@given(st.fixed_dictionaries(FIELDS))
def test_what_was_decided_arrives_as_it_was(fields: dict[str, object]) -> None:
    launch = Launch(**fields)  # type: ignore[arg-type]
    again = Launch.from_json(launch.to_json().encode().decode())  # as through a file
    assert again == launch._replace(env=None if launch.env is None else dict(launch.env))


@settings(deadline=None, max_examples=100)
@given(st.text() | (values | st.dictionaries(st.sampled_from([*FIELDS, "else"][1:]), scalars)).map(json.dumps))
def test_anything_else_is_refused(text: str) -> None:
    """The inputs are any text, any JSON, and a launch without a name or with an unknown field."""
    with pytest.raises(ValueError, match=r"."):
        Launch.from_json(text)
