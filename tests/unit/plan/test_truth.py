"""What is planned against what vLLM said on real cards: weights within 1 %, tokens of KV cache within 5 %."""

from __future__ import annotations

import pytest

from tests.truth.starts import Start, counted_parameters, measured_starts, model_config
from vllm_safe.plan import placement
from vllm_safe.plan.serving import Serving
from vllm_safe.plan.tensors import list_tensors


@pytest.mark.parametrize("start", measured_starts(), ids=lambda start: start.name)
def test_the_plan_is_what_vllm_said(start: Start) -> None:
    assert (abs(start.weights_error) < 0.01, abs(start.tokens_error) < 0.05) == (True, True), (start.weights_error, start.tokens_error)


@pytest.mark.parametrize("row", counted_parameters(), ids=lambda row: f"{row[0]}-{row[1]}x{row[2]}-{row[3]}")
def test_the_bytes_of_a_rank_are_those_of_vllm_s_own_classes(row: tuple[str, int, int, int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    name, split, stages, stage, size = row
    monkeypatch.setattr(placement, "_allocated", lambda size: size)  # torch's rounding is that of a card
    config = model_config(name)
    serving = Serving(tensor_parallel=split, pipeline_parallel=stages)
    found = placement.place_weights(config, list_tensors(config), serving, (8, 9))
    assert found[stage * split] == pytest.approx(size, rel=0.001)
