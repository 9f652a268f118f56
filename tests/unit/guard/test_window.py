"""A window never overestimates."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vllm_safe.guard.window import Window


@given(st.lists(st.tuples(st.floats(0.01, 20), st.floats(0, 1)), min_size=1, max_size=200), st.floats(1, 60))
def test_what_grew_lately_is_never_too_much(steps: list[tuple[float, float]], span: float) -> None:
    window, now, total, past = Window(span), 0.0, 0.0, [(0.0, 0.0)]
    for passed, share in steps:
        now, total = now + passed, total + passed * share
        past.append((now, total))
        window.add(now, {"a": total})
        truly = total - min(value for when, value in past if when >= now - span)
        assert 0 <= window.grown({"a": total}).get("a", 0.0) <= truly + 1e-9
        assert window.length(now) <= span + 1e-9


def test_a_total_that_is_new_has_not_grown() -> None:
    window = Window(5)
    window.add(0, {"a": 1})
    assert window.grown({"a": 3, "b": 9}) == {"a": 2}
    window.clear()
    assert window.grown({"a": 3}) == {}
