"""The decision whether vLLM would start with a model, GPUs and arguments, and how much it could serve."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

from vllm_safe.common.sizes import GIB, MIB, format_size
from vllm_safe.plan.cache import CacheLayout, lay_out
from vllm_safe.plan.memory import CardBudget, Rank, budget_card, capture_sizes, outside_bytes
from vllm_safe.plan.model_config import ModelConfig
from vllm_safe.plan.placement import place_weights
from vllm_safe.plan.plan_limits import find_obstacle
from vllm_safe.plan.plan_question import Observed, Plan, PlanLine, PlanQuestion
from vllm_safe.plan.quantization_config import Quantization
from vllm_safe.plan.serving import ROUGHLY_PLANNED, Batch, Card, Serving, fill_defaults
from vllm_safe.plan.tensors import Tensor, list_tensors

_OLDEST, _NEWEST = (0, 26), (0, 32)  # versions of vLLM whose figures these are
_TYPES = frozenset({"half", "float16", "bfloat16", "float", "float32"})
_CACHE_TYPES = frozenset({"auto", "float16", "bfloat16", "fp8", "fp8_e4m3", "fp8_e5m2", "fp8_ds_mla"})
# The possible error of the estimated part of a GPU's memory. Within it, no start is refused and none is promised.
_LEAST_MARGIN = 64 * MIB
_MARGIN = 0.1
_WEIGHTS_MARGIN = 0.005
_ROUNDING = GIB // 200  # half of the last digit of "14.29 GiB", as vLLM prints it
_UNKNOWN_MARGIN = GIB  # if the plan ignores something


@dataclass(frozen=True)
class _Room:
    """The memory for the KV cache on each GPU. `margins`: its possible error."""

    budgets: tuple[CardBudget, ...]
    available: tuple[int, ...]
    margins: tuple[int, ...]
    exact: bool = False  # reported by vLLM

    @property
    def worst(self) -> tuple[int, ...]:
        """The memory for the KV cache if every estimate of the other parts is too low."""
        return tuple(size - margin for size, margin in zip(self.available, self.margins, strict=True))

    @property
    def best(self) -> tuple[int, ...]:
        """The memory for the KV cache if every estimate of the other parts is too high. Only first starts need that of torch.compile."""
        if self.exact:
            return self.available
        rows = zip(self.available, self.margins, self.budgets, strict=True)
        return tuple(size + margin + budget.compiling for size, margin, budget in rows)


def decide_plan(question: PlanQuestion) -> Plan:
    """Return the outcome of a start, as far as it depends on the facts that a plan takes into account (see Plan.doubtful)."""
    question = replace(question, config=_served(question.config, question.serving))
    config, serving = question.config, question.serving
    cards = question.cards[: serving.ranks]
    batch = fill_defaults(serving, cards, config.max_positions)
    doubts = tuple(_doubts(question))
    unknown, doubtful = (*doubts, *_trifles(question)), bool(doubts)
    if obstacle := find_obstacle(question, batch):
        return Plan(starts=False, reason=obstacle, batch=batch, unknown=unknown, doubtful=doubtful)
    if not question.tensors and not config.has_known_tensors and not question.size:
        reason = "the size of its weights is not known: its files are missing"
        return Plan(starts=None, reason=reason, batch=batch, unknown=unknown, doubtful=doubtful)
    room = _room(question, cards, batch, unknown)
    layout = lay_out(config, serving, batch, cards[0].capability)
    longest = layout.longest(layout.blocks(room.available), config.max_positions)
    sure = layout.longest(layout.blocks(room.worst), config.max_positions)
    # With "auto", vLLM chooses the longest context that fits, even if that is a single token.
    wanted = 1 if serving.max_model_len == -1 else batch.max_model_len
    starts, reason = _verdict(question, replace(batch, max_model_len=wanted), room, layout)
    if serving.max_model_len == -1:
        batch = replace(batch, max_model_len=max(1, longest))
    blocks = layout.blocks(room.available)
    served = starts is not False and blocks > 1
    tokens = layout.tokens(blocks, batch.max_model_len) if served else 0
    plan = Plan(
        starts=starts,
        reason=reason,
        weights=tuple(budget.weights for budget in room.budgets),
        kv_bytes=tuple(max(0, size) for size in room.available),
        kv_tokens=_seen_tokens(question) or tokens,
        longest_context=longest,
        sure_context=longest if room.exact else sure,
        requests_at_once=tokens / batch.max_model_len,
        batch=batch,
        budgets=room.budgets,
        exact=_exact(question, room, unknown),
        unknown=unknown,
        doubtful=doubtful,
    )
    return replace(plan, lines=tuple(_lines(question, plan, room)))


def _doubts(question: PlanQuestion) -> Iterator[str]:
    """Yield the properties that the plan ignores although their effect on memory may be of any size."""
    config, serving = question.config, question.serving
    yield from (*config.unknown, *question.unknown)
    yield from (f"the option {name}" for name in serving.unplanned if name not in ROUGHLY_PLANNED)
    methods = {"fp8", *({config.quantization.method, f"{config.quantization.method}_marlin"} if config.quantization else ())}
    if serving.quantization and serving.quantization not in methods:
        yield f"quantization {serving.quantization}"
    if serving.kv_cache_dtype not in _CACHE_TYPES:
        yield f"kv-cache-dtype {serving.kv_cache_dtype}"
    if serving.dtype not in {"auto", *_TYPES}:
        yield f"dtype {serving.dtype}"
    if question.size and not question.tensors and not config.has_known_tensors:
        yield "the split of the weights over GPUs: only the sizes of the files are known"


def _trifles(question: PlanQuestion) -> Iterator[str]:
    """Yield the properties that the plan ignores, with an effect of at most _UNKNOWN_MARGIN."""
    serving = question.serving
    yield from (f"the option {name}" for name in serving.unplanned if name in ROUGHLY_PLANNED)
    if question.config.multimodal:
        yield "the image and audio encoders, except for their weights if the files are present"
    if not _OLDEST <= serving.version <= _NEWEST:
        yield f"vLLM {serving.version[0]}.{serving.version[1]}: the figures are those of {_NEWEST[0]}.{_NEWEST[1]}"


def _served(config: ModelConfig, serving: Serving) -> ModelConfig:
    """Return the model as vLLM loads it with `dtype` and `quantization`."""
    if serving.dtype in _TYPES:
        config = replace(config, dtype=serving.dtype)
    if serving.quantization == "fp8" and config.quantization is None:
        return replace(config, quantization=Quantization("fp8", 8, "float", -1, quantized_activations=True, skipped=("lm_head",)))
    return config


@lru_cache(maxsize=64)
def _weights(
    config: ModelConfig, tensors: tuple[Tensor, ...], split: tuple[int, int, bool], partition: tuple[int, ...], capability: tuple[int, int]
) -> tuple[int, ...]:
    serving = Serving(tensor_parallel=split[0], pipeline_parallel=split[1], expert_parallel=split[2], layer_partition=partition)
    return place_weights(config, tensors or list_tensors(config), serving, capability)


def _on_the_fly(config: ModelConfig, serving: Serving, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return the tensors after vLLM has quantised a checkpoint while loading it."""
    if serving.quantization != "fp8" or config.quantization is None or any(tensor.dtype.startswith("F8") for tensor in tensors):
        return tensors
    return tuple(replace(tensor, dtype="F8_E4M3") if _is_linear(tensor) else tensor for tensor in tensors)


def _is_linear(tensor: Tensor) -> bool:
    return tensor.name.endswith("_proj.weight") and len(tensor.shape) == 2


def _budgets(question: PlanQuestion, cards: tuple[Card, ...], batch: Batch, serving: Serving) -> tuple[CardBudget, ...]:
    config = question.config
    split = (serving.tensor_parallel, serving.pipeline_parallel, serving.expert_parallel)
    tensors = _on_the_fly(config, serving, question.tensors)
    sized = (question.size // serving.ranks,) * serving.ranks
    weights = (
        sized
        if not tensors and not config.has_known_tensors
        else _weights(config, tensors, split, serving.layer_partition, min(card.capability for card in cards))
    )
    last = len(weights) - serving.tensor_parallel
    return tuple(
        budget_card(config, serving, batch, Rank(card, size, rank < serving.tensor_parallel, rank >= last))
        for rank, (card, size) in enumerate(zip(cards, weights, strict=True))
    )


def _room(question: PlanQuestion, cards: tuple[Card, ...], batch: Batch, unknown: tuple[str, ...]) -> _Room:
    serving = question.serving
    budgets = _budgets(question, cards, batch, serving)
    if serving.kv_cache_memory:
        return _Room(budgets, (serving.kv_cache_memory,) * len(cards), (0,) * len(cards), exact=True)
    available = tuple(budget.available for budget in budgets)
    more = _UNKNOWN_MARGIN if unknown else 0
    margins = tuple(int(max(_LEAST_MARGIN, _MARGIN * budget.estimated) + _WEIGHTS_MARGIN * budget.weights) + more for budget in budgets)
    if seen := _nearest(question.observed, serving):
        if seen.weights and len(seen.weights) == len(budgets):
            budgets = tuple(_with_weights(budget, size) for budget, size in zip(budgets, seen.weights, strict=True))
        if seen.serving == serving:
            return _Room(budgets, (seen.available,) * len(cards), (0,) * len(cards), exact=True)
        then = fill_defaults(seen.serving, cards, question.config.max_positions)
        off = seen.available - min(budget.available for budget in _budgets(question, cards, then, seen.serving))
        return _Room(budgets, tuple(size + off for size in available), tuple(margin // 2 for margin in margins))
    return _Room(budgets, available, margins)


def _with_weights(budget: CardBudget, reported: int) -> CardBudget:
    """Return the budget with the weights that vLLM reported. If they are the computed weights, rounded to two decimals, keep the latter."""
    return budget if abs(reported - budget.weights) <= _ROUNDING else replace(budget, weights=reported)


def _nearest(observed: tuple[Observed, ...], serving: Serving) -> Observed | None:
    """Return the start that is the best guide to this one: one with the same arguments, or else with the same split over GPUs."""
    usable = [seen for seen in observed if seen.available > 0]
    same = [seen for seen in usable if seen.serving == serving]
    alike = [seen for seen in usable if _split(seen.serving) == _split(serving)]
    found = same or alike
    return found[-1] if found else None


def _split(serving: Serving) -> tuple[object, ...]:
    return (
        *(serving.tensor_parallel, serving.pipeline_parallel, serving.layer_partition, serving.expert_parallel),
        *(serving.quantization, serving.dtype, serving.enforce_eager),
    )


def _seen_tokens(question: PlanQuestion) -> int:
    return next((seen.kv_tokens for seen in reversed(question.observed) if seen.serving == question.serving), 0)


def _verdict(question: PlanQuestion, batch: Batch, room: _Room, layout: CacheLayout) -> tuple[bool | None, str]:
    cards = question.cards[: question.serving.ranks]
    for rank, (card, budget) in enumerate(zip(cards, room.budgets, strict=True)):
        if budget.requested > card.memory - card.used:
            free = format_size(card.memory - card.used)
            return False, (
                f"vLLM would ask for {format_size(budget.requested)} of GPU {rank}, of which {free} are free"
                f" (gpu-memory-utilization {batch.gpu_memory_utilization:g})"
            )
    needed = layout.request_blocks(batch.max_model_len) + 1
    likely, best, worst = (layout.blocks(sizes) >= needed for sizes in (room.available, room.best, room.worst))
    tightest = min(range(len(cards)), key=lambda rank: room.available[rank])
    if question.serving.kv_cache_memory and room.budgets[tightest].weights + room.available[tightest] > cards[tightest].memory:
        return None, f"GPU {tightest} has less memory than the weights and kv-cache-memory-bytes together"
    left, weights = room.available[tightest], room.budgets[tightest].weights
    if left <= 0:
        reason = (
            f"no memory would be left for the KV cache: of the {format_size(room.budgets[tightest].requested)} that vLLM may use of GPU"
            f" {tightest}, the weights take {format_size(weights)} and the rest {format_size(room.budgets[tightest].estimated)}"
        )
    elif not likely:
        reason = f"the KV cache of {format_size(left)} would not hold one request of max-model-len {batch.max_model_len}"
    else:
        reason = f"{format_size(left)} are left for the KV cache of the fullest GPU"
    if not best:
        return False, reason
    if not worst:
        return None, f"too close to tell: {reason}"
    left_out = [card.memory - card.used - outside_bytes(question.serving, card) for card in cards]
    context = next((rank for rank, size in enumerate(left_out) if size < room.budgets[rank].requested), None)
    if context is not None:
        return None, f"GPU {context} might not have the memory that gpu-memory-utilization {batch.gpu_memory_utilization:g} asks for"
    return True, reason


def _exact(question: PlanQuestion, room: _Room, unknown: tuple[str, ...]) -> frozenset[str]:
    names = set()
    if not unknown or any(seen.weights and _split(seen.serving) == _split(question.serving) for seen in question.observed):
        names.add("weights")
    if room.exact:
        names |= {"kv_bytes", "kv_tokens", "longest_context", "requests_at_once"}
    return frozenset(names)


def _lines(question: PlanQuestion, plan: Plan, room: _Room) -> list[PlanLine]:
    batch = plan.batch
    assert batch is not None  # noqa: S101 # a plan with lines has one
    tightest = min(range(len(room.available)), key=lambda rank: room.available[rank])
    budget = room.budgets[tightest]
    where = "its files" if question.tensors else "config.json"
    graphs = "none with enforce-eager" if question.serving.enforce_eager else f"batches of {len(capture_sizes(batch))} sizes"
    rest = "as vLLM reported at such a start" if room.exact else "the rest"
    rows = [
        ("may use", budget.requested, True, f"gpu-memory-utilization {batch.gpu_memory_utilization:g} of the GPU"),
        ("weights", budget.weights, "weights" in plan.exact, f"from {where}, as vLLM splits and repacks it"),
        ("activations", budget.activations, False, f"{batch.max_num_batched_tokens} tokens at once (max-num-batched-tokens)"),
        ("compilation", budget.compiling, question.serving.enforce_eager, "torch.compile copies the embedding"),
        ("buffers", budget.buffers, False, f"{batch.max_num_seqs} requests (max-num-seqs), and workspaces"),
        ("libraries", budget.libraries, False, "kernels and communication"),
        ("CUDA graphs", budget.graphs, question.serving.enforce_eager, graphs),
        ("KV cache", plan.kv_bytes[tightest], room.exact, rest),
    ]
    lines = [PlanLine(label, size, format_size(size), exact, why) for label, size, exact, why in rows if size or label != "compilation"]
    tokens = f"{plan.requests_at_once:.1f} requests of {batch.max_model_len:,} tokens at once"
    longest = "tokens of one request and its answer"
    if plan.kv_tokens:
        lines.append(PlanLine("KV tokens", None, f"{plan.kv_tokens:,}", room.exact, tokens))
    lines.append(PlanLine("longest context", None, f"{plan.longest_context:,}", room.exact, longest))
    return lines
