"""What is planned against what vLLM said on real cards: weights within 1 %, tokens of KV cache within 5 %."""

from __future__ import annotations

import pytest

from tests.truth.starts import Start, measured_starts


@pytest.mark.parametrize("start", measured_starts(), ids=lambda start: start.name)
def test_the_plan_is_what_vllm_said(start: Start) -> None:
    assert (abs(start.weights_error) < 0.01, abs(start.tokens_error) < 0.05) == (True, True), (start.weights_error, start.tokens_error)
