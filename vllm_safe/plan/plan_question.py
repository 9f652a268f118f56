"""The question to a plan, and its answer."""

from __future__ import annotations

from dataclasses import dataclass, field

from vllm_safe.plan.memory import CardBudget
from vllm_safe.plan.model_config import ModelConfig
from vllm_safe.plan.serving import Batch, Card, Serving
from vllm_safe.plan.tensors import Tensor


@dataclass(frozen=True)
class Observed:
    """The memory figures that vLLM reported at an earlier start of the same model on the same GPUs.

    `weights`: "Model loading took X GiB" of each rank, or (); `available`: "Available KV cache memory" of the rank that has the least, or
    0; `kv_tokens`: "GPU KV cache size", or 0.
    """

    serving: Serving
    weights: tuple[int, ...] = ()
    available: int = 0
    kv_tokens: int = 0


@dataclass(frozen=True)
class PlanQuestion:
    """A model, its GPUs in the order of the ranks, and its arguments.

    `tensors`: those of its files; if (), they are computed from its family. `size`: bytes of its weight files,
    used if the family is unknown.
    """

    config: ModelConfig
    serving: Serving
    cards: tuple[Card, ...]
    tensors: tuple[Tensor, ...] = ()
    size: int = 0
    observed: tuple[Observed, ...] = ()
    unknown: tuple[str, ...] = ()  # facts about the GPUs that are not known


@dataclass(frozen=True)
class PlanLine:
    """One line of a plan. `size`: bytes on the GPU with the least room, or None for a line of text."""

    label: str
    size: int | None
    text: str
    exact: bool
    why: str


@dataclass(frozen=True)
class PlanChange:
    """Options that make a model start, by their names in `args` and `env`, and their price."""

    args: tuple[tuple[str, str], ...]
    env: tuple[tuple[str, str], ...] = ()
    cost: str = ""


@dataclass(frozen=True)
class Plan:
    """The outcome of a start. `starts`: None if it is too close to call, or if something about the model is not known."""

    starts: bool | None
    reason: str
    weights: tuple[int, ...] = ()  # bytes on each GPU
    kv_bytes: tuple[int, ...] = ()  # bytes of KV cache on each GPU
    kv_tokens: int = 0  # vLLM's "GPU KV cache size"
    longest_context: int = 0  # tokens of one request that the KV cache could hold, at most the model's own
    sure_context: int = 0  # the same, if every estimate is too low
    requests_at_once: float = 0.0  # of the full length
    batch: Batch | None = None  # the arguments in force, including vLLM's defaults
    budgets: tuple[CardBudget, ...] = ()
    lines: tuple[PlanLine, ...] = ()
    exact: frozenset[str] = field(default_factory=frozenset)  # names of the fields above that are exact, not estimated
    unknown: tuple[str, ...] = ()  # properties of the model that the plan does not take into account
    doubtful: bool = False  # one of these may decide whether the model starts: neither answer would be safe
