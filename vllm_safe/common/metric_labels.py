"""Labels in the text format of Prometheus. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping


def render_labels(labels: Mapping[str, str]) -> str:
    """Return the labels as they follow the name of a metric."""
    return "{" + ",".join(f'{key}="{_escape(value)}"' for key, value in labels.items()) + "}"


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
