"""What a model takes of each GPU: a share of it, and what CUDA takes beside that."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.truth.starts import MODELS_FILE
from vllm_safe.common.sizes import GIB
from vllm_safe.driver.card_facts import NvmlCard
from vllm_safe.plan.gpu_claim import claimed_bytes
from vllm_safe.plan.plan_facts import PlannedServer, read_plan_facts

CARD = NvmlCard("RTX 3090", (8, 6), memory=24 * GIB)


def claim(root: Path, **args: object) -> list[float]:
    """Return the claims in GiB, on two GPUs."""
    (root / "config.json").write_text(json.dumps(json.loads(MODELS_FILE.read_text())["qwen2.5-7b"]))
    options = {name.replace("_", "-"): value for name, value in args.items()}
    return [size / GIB for size in claimed_bytes(read_plan_facts(PlannedServer("x", str(root), options, {}), (CARD, CARD), root))]


def test_a_share_of_the_first_gpu_or_of_each(tmp_path: Path) -> None:
    assert claim(tmp_path, gpu_memory_utilization=0.5) == [pytest.approx(12.3, abs=0.2)]
    assert claim(tmp_path, gpu_memory_utilization=0.5, tensor_parallel_size=2) == [pytest.approx(12.5, abs=0.3)] * 2


def test_without_a_share_it_is_nearly_all_and_never_more(tmp_path: Path) -> None:
    (size,) = claim(tmp_path)
    assert 22 < size <= 24
    assert claim(tmp_path, gpu_memory_utilization=1.0) == [24.0]


def test_a_size_of_the_cache_replaces_the_share(tmp_path: Path) -> None:
    (size,) = claim(tmp_path, kv_cache_memory_bytes="1G")
    assert 15 < size < 19
