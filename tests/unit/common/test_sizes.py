"""Time spans as people read them."""

from __future__ import annotations

import pytest

from vllm_safe.common.sizes import format_span


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.9, "0 s"),
        (45, "45 s"),
        (60, "1 min"),
        (200, "3 min 20 s"),
        (3600, "1 h"),
        (3605, "1 h"),
        (3900, "1 h 5 min"),
        (14400, "4 h"),
        (183600, "2 d 3 h"),
    ],
)
def test_spans_have_at_most_two_units(seconds: float, text: str) -> None:
    assert format_span(seconds) == text
