"""Tests of which GPUs a server gets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.truth.starts import MODELS_FILE
from vllm_safe.common.sizes import GIB
from vllm_safe.driver.card_facts import NvmlCard
from vllm_safe.plan.host_needs import HostLimits
from vllm_safe.plan.plan_facts import PlanFacts, PlannedServer, read_plan_facts
from vllm_safe.plan.start_plan import decide_start_plan

OLD, NEW = NvmlCard("GTX 1050 Ti", (6, 1), memory=4 * GIB), NvmlCard("RTX 3090", (8, 6), memory=24 * GIB)
NUMBERED = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


def read(root: Path, env: dict[str, str], cards: tuple[NvmlCard, ...] = (OLD, NEW), **args: object) -> PlanFacts:
    (root / "config.json").write_text(json.dumps(json.loads(MODELS_FILE.read_text())["qwen2.5-7b"]))
    options = {name.replace("_", "-"): value for name, value in args.items()}
    return read_plan_facts(PlannedServer("x", str(root), options, env), cards, root)


@pytest.mark.parametrize("env", [{}, {"CUDA_VISIBLE_DEVICES": "GPU-0123"}, {"CUDA_VISIBLE_DEVICES": "1"}])
def test_unlike_gpus_in_an_order_that_is_not_known_refuse_nothing(env: dict[str, str], tmp_path: Path) -> None:
    """CUDA numbers the fastest first: a model that only the larger one holds would start."""
    facts = read(tmp_path, env, (NEW, OLD) if env.get("CUDA_VISIBLE_DEVICES") == "1" else (OLD, NEW))
    assert facts.unordered
    whole = decide_start_plan("x", facts, HostLimits())
    assert (whole.plan.starts, whole.starts) == (False, None)


def test_numbers_in_the_order_of_the_bus(tmp_path: Path) -> None:
    facts = read(tmp_path, NUMBERED | {"CUDA_VISIBLE_DEVICES": "1,0"})
    assert ([card.name for card in facts.cards], facts.unordered) == (["RTX 3090", "GTX 1050 Ti"], False)


def test_gpus_that_are_alike(tmp_path: Path) -> None:
    assert not read(tmp_path, {}, (NEW, NEW)).unordered


def test_all_gpus_with_an_equal_part_each(tmp_path: Path) -> None:
    assert not read(tmp_path, {}, tensor_parallel_size=2).unordered
    assert read(tmp_path, {}, pipeline_parallel_size=2).unordered
