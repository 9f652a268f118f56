"""The gateway's own metrics."""

from __future__ import annotations

from vllm_safe.gateway.gateway_metrics import GatewayFigures, render_gateway_metrics


def test_each_figure_has_its_line_and_each_family_its_type() -> None:
    figures = GatewayFigures(3, {("a", 200): 5, ("", 404): 1}, {"a": 2}, {"b": 4}, {"a": "ready", "b": "stopped"}, 7)
    lines = render_gateway_metrics(figures).splitlines()
    assert [line for line in lines if not line.startswith("#")] == [
        "vllm_safe_gateway_connections 3",
        'vllm_safe_gateway_requests_total{model="",code="404"} 1',
        'vllm_safe_gateway_requests_total{model="a",code="200"} 5',
        'vllm_safe_gateway_requests_running{model="a"} 2',
        'vllm_safe_gateway_requests_running{model="b"} 0',
        'vllm_safe_gateway_requests_waiting{model="a"} 0',
        'vllm_safe_gateway_requests_waiting{model="b"} 4',
        'vllm_safe_gateway_model_ready{model="a"} 1',
        'vllm_safe_gateway_model_ready{model="b"} 0',
        "vllm_safe_gateway_switches_total 7",
    ]
    assert "# TYPE vllm_safe_gateway_requests_total counter" in lines
    assert "# TYPE vllm_safe_gateway_requests_running gauge" in lines
