"""Print each start that was measured with what is planned for it, and the error of both figures."""

from __future__ import annotations

from tests.truth.starts import measured_starts
from vllm_safe.common.sizes import GIB

if __name__ == "__main__":
    print(f"{'weights: plan':>14} {'vLLM':>7} {'error':>8}   {'tokens: plan':>13} {'vLLM':>11} {'error':>8}   start")
    for start in measured_starts():
        plan = start.plan
        weights = f"{max(plan.weights) / GIB:14.2f} {max(start.weights) / GIB:7.2f} {start.weights_error:+8.2%}"
        print(f"{weights}   {plan.kv_tokens:13,} {start.kv_tokens:11,} {start.tokens_error:+8.2%}   {start.name}")
