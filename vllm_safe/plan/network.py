"""The cost of the network between the machines of one model: bytes per token, and the time of a prompt at usual speeds."""

from __future__ import annotations

from vllm_safe.common.sizes import format_size, format_span
from vllm_safe.plan.model_config import ModelConfig
from vllm_safe.plan.plan_question import PlanLine
from vllm_safe.plan.serving import Serving

_ALL_REDUCES = 2  # of each layer: after attention and after the feed-forward (vllm/model_executor/layers/linear.py, RowParallelLinear)
_HANDED_ON = 2  # hidden states and residual, from one stage to the next (vllm/model_executor/models/utils.py)
_PREFILL = 1024  # tokens
_GIGABIT = 125_000_000 * 0.94  # bytes per second of TCP over 1 Gbit/s Ethernet
_PACES = (1, 10)  # Gbit/s


def network_line(config: ModelConfig, serving: Serving, machines: int) -> PlanLine:
    """Return the line of a plan about the network. The latency of the messages, of which tensor parallelism has many, is not counted."""
    token, how = network_bytes(config, serving, machines)
    times = ", ".join(f"{_brief(_PREFILL * token / (pace * _GIGABIT))} at {pace} Gbit/s" for pace in _PACES)
    why = f"a token, from each of {machines} machines: {how}; {_PREFILL} tokens of a prompt take {times}"
    return PlanLine("network", token, format_size(token), exact=False, why=why)


def network_bytes(config: ModelConfig, serving: Serving, machines: int) -> tuple[int, str]:
    """Return the bytes that a machine sends for each token, and their purpose. The ranks of a stage are on as few machines as possible."""
    state = config.hidden * config.item_size
    per_machine = serving.ranks // machines
    if serving.tensor_parallel <= per_machine:
        return _HANDED_ON * state, "handed from stage to stage (pipeline parallel)"
    ring = -(-serving.tensor_parallel // per_machine)  # machines among which a stage is split
    layers = -(-config.layers // serving.pipeline_parallel)
    return int(2 * (ring - 1) / ring * _ALL_REDUCES * layers * state), f"{_ALL_REDUCES * layers} all-reduces (tensor parallel)"


def _brief(seconds: float) -> str:
    return format_span(seconds) if seconds >= 1 else f"{max(1, round(seconds * 1000))} ms"
