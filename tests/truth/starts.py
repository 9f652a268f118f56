"""The starts that were measured, as questions for a plan."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from vllm_safe.common.sizes import GIB
from vllm_safe.plan.config_json import parse_model_config
from vllm_safe.plan.model_config import ModelConfig
from vllm_safe.plan.plan_decision import decide_plan
from vllm_safe.plan.plan_question import Plan, PlanQuestion
from vllm_safe.plan.serving import Card, read_serving

_HERE = Path(__file__).parent
MODELS_FILE = _HERE / "models.json"  # the config.json of each model
CARDS = {
    "H200": Card(150_109_110_272, (9, 0), name="NVIDIA H200"),
    "RTX 3060": Card(12_627_476_480, (8, 6), name="NVIDIA GeForce RTX 3060"),
}


@dataclass(frozen=True)
class Start:
    """One start of vLLM. `weights`: bytes of each rank as it printed them; `kv_tokens`: its "GPU KV cache size"."""

    model: str
    arguments: Mapping[str, Any]
    question: PlanQuestion
    weights: tuple[float, ...]
    kv_tokens: int

    @property
    def name(self) -> str:
        """The model, and the arguments that are not those of most starts."""
        usual = {"max_model_len": 8192, "max_num_seqs": 64, "max_num_batched_tokens": 2048, "gpu_memory_utilization": 0.9}
        special = [f"{key}={value}" for key, value in self.arguments.items() if usual.get(key) != value]
        return " ".join([self.model, *special])

    @property
    def plan(self) -> Plan:
        """What is planned for it."""
        return decide_plan(self.question)

    @property
    def weights_error(self) -> float:
        """How far the weights of the card with most are off, as a part of 1."""
        return max(self.plan.weights) / max(self.weights) - 1

    @property
    def tokens_error(self) -> float:
        """How far the tokens of KV cache are off, as a part of 1."""
        return self.plan.kv_tokens / self.kv_tokens - 1


@cache
def model_config(name: str) -> ModelConfig:
    """Return the configuration of a model of the table."""
    return parse_model_config(json.loads(MODELS_FILE.read_text())[name], f"{name}/config.json")


@cache
def measured_starts() -> tuple[Start, ...]:
    """Return all starts that were measured."""
    return tuple(_start(json.loads(line)) for line in (_HERE / "starts.jsonl").read_text().splitlines())


@cache
def counted_parameters() -> tuple[tuple[str, int, int, int, int], ...]:
    """Return rows of a model, the size of both kinds of parallelism, a stage, and the bytes of a rank of it."""
    return tuple(tuple(json.loads(line)) for line in (_HERE / "parameters.jsonl").read_text().splitlines())


def _start(row: dict[str, Any]) -> Start:
    arguments = row["arguments"]
    serving = read_serving({key.replace("_", "-"): value for key, value in arguments.items()}, row.get("env"))
    question = PlanQuestion(model_config(row["model"]), serving, (CARDS[row["card"]],) * serving.ranks)
    return Start(row["model"], arguments, question, tuple(size * GIB for size in row["weights_gib"]), row["kv_tokens"])
