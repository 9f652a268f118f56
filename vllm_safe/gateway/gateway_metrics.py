"""The gateway's own metrics, in Prometheus' text format. The names follow prometheus.io/docs/practices/naming."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from vllm_safe.common.metric_labels import render_labels


class GatewayFigures(NamedTuple):
    """The counted figures. answers: by model and HTTP status; the model is "" for requests that name none."""

    connections: int
    answers: Mapping[tuple[str, int], int]
    in_flight: Mapping[str, int]
    waiting: Mapping[str, int]
    states: Mapping[str, str]
    switches: int


_FAMILIES = {
    "connections": ("gauge", "Open connections of clients."),
    "requests_total": ("counter", "Requests that were answered, by model and HTTP status."),
    "requests_running": ("gauge", "Requests that are passed to a model now."),
    "requests_waiting": ("gauge", "Requests that wait for their model."),
    "model_ready": ("gauge", "1 for a model that answers, else 0."),
    "switches_total": ("counter", "Models that were started in place of others."),
}


def render_gateway_metrics(figures: GatewayFigures) -> str:
    """Return the text."""
    rows: dict[str, list[str]] = {}
    for family, labels, value in _rows(figures):
        rows.setdefault(family, []).append(f"vllm_safe_gateway_{family}{render_labels(labels) if labels else ''} {value}")
    lines: list[str] = []
    for family, (kind, text) in _FAMILIES.items():
        lines += [f"# HELP vllm_safe_gateway_{family} {text}", f"# TYPE vllm_safe_gateway_{family} {kind}", *rows.get(family, ())]
    return "\n".join(lines) + "\n"


def _rows(figures: GatewayFigures) -> Iterator[tuple[str, dict[str, str], int]]:
    yield "connections", {}, figures.connections
    for (model, status), count in sorted(figures.answers.items()):
        yield "requests_total", {"model": model, "code": str(status)}, count
    for model, state in figures.states.items():
        yield "requests_running", {"model": model}, figures.in_flight.get(model, 0)
        yield "requests_waiting", {"model": model}, figures.waiting.get(model, 0)
        yield "model_ready", {"model": model}, int(state == "ready")
    yield "switches_total", {}, figures.switches
