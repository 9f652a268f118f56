"""Labels of metrics."""

from __future__ import annotations

from vllm_safe.common.metric_labels import render_labels


def test_what_ends_a_label_is_escaped() -> None:
    assert render_labels({"a": 'x"y\\z\n', "b": "1"}) == '{a="x\\"y\\\\z\\n",b="1"}'
