"""What a plan is asked, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass, field

from vllm_safe.plan.memory import CardBudget
from vllm_safe.plan.model_config import ModelConfig
from vllm_safe.plan.serving import Batch, Card, Serving
from vllm_safe.plan.tensors import Tensor


@dataclass(frozen=True)
class Observed:
    """What vLLM itself reported at an earlier start of the same model on the same cards.

    `weights`: "Model loading took X GiB" of each rank, or (); `available`: "Available KV cache memory" of the rank with least, or 0;
    `kv_tokens`: "GPU KV cache size", or 0.
    """

    serving: Serving
    weights: tuple[int, ...] = ()
    available: int = 0
    kv_tokens: int = 0


@dataclass(frozen=True)
class PlanQuestion:
    """A model, cards in the order of their ranks, and arguments.

    `tensors`: from its files; () where there are none: then by its family. `size`: bytes of its weight files, for one of no known family.
    """

    config: ModelConfig
    serving: Serving
    cards: tuple[Card, ...]
    tensors: tuple[Tensor, ...] = ()
    size: int = 0
    observed: tuple[Observed, ...] = ()
    unknown: tuple[str, ...] = ()  # what is not known of the cards


@dataclass(frozen=True)
class PlanLine:
    """One line of a plan. `size`: bytes of the card with least room, or None for a line that has only a text."""

    label: str
    size: int | None
    text: str
    exact: bool
    why: str


@dataclass(frozen=True)
class PlanChange:
    """Options to set, by their names in `args` and `env`, that make a model start, and what they cost."""

    args: tuple[tuple[str, str], ...]
    env: tuple[tuple[str, str], ...] = ()
    cost: str = ""


@dataclass(frozen=True)
class Plan:
    """What vLLM would do. `starts`: None where it is too close to tell, or where something is not known."""

    starts: bool | None
    reason: str
    weights: tuple[int, ...] = ()  # bytes on each card
    kv_bytes: tuple[int, ...] = ()  # bytes of KV cache on each card
    kv_tokens: int = 0  # vLLM's "GPU KV cache size"
    longest_context: int = 0  # tokens of one request that the KV cache could hold, at most the model's own
    sure_context: int = 0  # the same where every estimate is too low
    requests_at_once: float = 0.0  # of the full length
    batch: Batch | None = None  # the arguments that hold, vLLM's defaults filled in
    budgets: tuple[CardBudget, ...] = ()
    lines: tuple[PlanLine, ...] = ()
    exact: frozenset[str] = field(default_factory=frozenset)  # names of the fields above that are no estimates
    unknown: tuple[str, ...] = ()  # what could not be taken into account
    doubtful: bool = False  # some of that might decide whether it starts, so that nobody may be told that it does, or does not
