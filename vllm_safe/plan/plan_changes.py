"""The smallest change that makes a model start, and the largest context that fits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from vllm_safe.common.sizes import format_size
from vllm_safe.plan.memory import outside_bytes
from vllm_safe.plan.plan_decision import decide_plan
from vllm_safe.plan.plan_question import PlanChange, PlanQuestion
from vllm_safe.plan.plan_split import count_tries, decide_split
from vllm_safe.plan.serving import Batch

_LEAST_CONTEXT = 512  # tokens: a shorter context is of no use
_USUAL_CONTEXT = 8192
_CONTEXT_STEP = 256
_SEQUENCES = (256, 128, 64, 32, 16, 8, 4, 2, 1)
_BATCHED = 2048  # tokens: with few requests at once, larger batches only make prompts faster
_LEAST_BATCHED = 512
_HIGHEST_UTILIZATION = 0.97
_MORE = (2, 3, 4, 6, 8, 12, 16)  # numbers of GPUs in a machine
_SURE_PART = 0.9  # share of the weights: the rest may be repeated on each GPU
_FEW = 16  # requests at once: enough for a household or a team

_Try = Callable[[PlanQuestion], "PlanChange | None"]


def decide_changes(question: PlanQuestion) -> tuple[PlanChange, ...]:
    """Return the smallest change of each kind that makes the model start, in the order in which a user would choose.

    If no single change suffices, return the combination that does, as one change. Changes that need other GPUs come last. Return () for a
    model that starts as it is.
    """
    if decide_plan(question).starts:
        return ()
    single = [change for attempt in _ATTEMPTS if (change := attempt(question))]
    return (*(single or _together(question)), *_new_cards(question))


def decide_fit(question: PlanQuestion) -> PlanChange | None:
    """Return the arguments for the largest context that is certain to fit on the GPUs; None if none is.

    Of two with the same context, the one with the smaller change is chosen. Arguments that were set are kept, except for the length. CUDA
    graphs are given up only if nothing fits with them. A larger share of each GPU than vLLM's default is used only to reach a context of a
    usual length.
    """
    eager = _with(question, enforce_eager=True)
    best = _largest(_candidates(question)) or _largest(_candidates(eager))
    if best and best[0] < min(_USUAL_CONTEXT, question.config.max_positions):
        start = eager if best[1].serving.enforce_eager else question
        more = _largest(_candidates(_on_most_of_the_cards(start)))
        best = more if more and more[0] > best[0] else best
    return describe_change(question, best[1], f"up to {best[0]:,} tokens") if best else None


def _on_most_of_the_cards(question: PlanQuestion) -> PlanQuestion:
    """Return the question with the largest share of each GPU, if none was set and it is larger than vLLM's default."""
    now, share = decide_plan(question).batch, int(_highest_share(question) * 100) / 100
    if now is None or question.serving.gpu_memory_utilization is not None or share <= now.gpu_memory_utilization:
        return question
    return _with(question, gpu_memory_utilization=share)


def _largest(candidates: Iterator[PlanQuestion]) -> tuple[int, PlanQuestion] | None:
    """Return the longest context with which one of the questions is certain to start, and that question."""
    best: tuple[int, PlanQuestion] | None = None
    for candidate in candidates:
        plan = decide_plan(replace(candidate, serving=replace(candidate.serving, max_model_len=-1)))
        length = _rounded(plan.sure_context, candidate.config.max_positions)
        if plan.starts is not False and length >= _LEAST_CONTEXT and (best is None or length > best[0]):
            chosen = replace(candidate, serving=replace(candidate.serving, max_model_len=length))
            if decide_plan(chosen).starts:
                best = length, chosen
    return best


def describe_change(old: PlanQuestion, new: PlanQuestion, cost: str) -> PlanChange:
    """Return the options that turn one question into another."""
    before, after = old.serving, new.serving
    args = [(name, _shown(getattr(after, field))) for field, name in _OPTIONS if getattr(after, field) != getattr(before, field)]
    env = []
    if after.layer_partition != before.layer_partition:
        env.append(("VLLM_PP_LAYER_PARTITION", ",".join(map(str, after.layer_partition))))
    if new.cards[: after.ranks] != old.cards[: after.ranks] and sorted(map(repr, new.cards)) == sorted(map(repr, old.cards)):
        env.append(("CUDA_VISIBLE_DEVICES", ",".join(map(str, _order(old, new)))))
    return PlanChange(tuple(args), tuple(env), cost)


_OPTIONS = (
    ("tensor_parallel", "tensor-parallel-size"),
    ("pipeline_parallel", "pipeline-parallel-size"),
    ("max_model_len", "max-model-len"),
    ("max_num_seqs", "max-num-seqs"),
    ("max_num_batched_tokens", "max-num-batched-tokens"),
    ("gpu_memory_utilization", "gpu-memory-utilization"),
    ("kv_cache_dtype", "kv-cache-dtype"),
    ("quantization", "quantization"),
    ("enforce_eager", "enforce-eager"),
)


def _shown(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _order(old: PlanQuestion, new: PlanQuestion) -> Iterator[int]:
    """Return the numbers of the GPUs of `new` in `old`."""
    free = list(range(len(old.cards)))
    for card in new.cards:
        index = next(number for number in free if old.cards[number] == card)
        free.remove(index)
        yield index


def _with(question: PlanQuestion, **values: object) -> PlanQuestion:
    return replace(question, serving=replace(question.serving, **values))  # type: ignore[arg-type] # names of its own fields


def _first_that_starts(question: PlanQuestion, tries: Iterator[PlanQuestion], cost: str) -> PlanChange | None:
    found = next((attempt for attempt in tries if decide_plan(attempt).starts), None)
    return describe_change(question, found, cost) if found else None


def _shorter(question: PlanQuestion) -> PlanChange | None:
    plan = decide_plan(question)
    if plan.batch is None or plan.sure_context < _LEAST_CONTEXT:
        return None
    length = min(_rounded(plan.sure_context, question.config.max_positions), plan.batch.max_model_len)
    # A shorter context makes vLLM choose smaller batches, which may leave room for more.
    return _first_that_starts(question, iter([_with(question, max_model_len=length)]), "shorter prompts and answers")


def _fewer(question: PlanQuestion) -> PlanChange | None:
    plan = decide_plan(question)
    if plan.batch is None:
        return None
    tries = (_with(question, **_fewest(plan.batch, count, _tokens_for(count))) for count in _SEQUENCES if count < plan.batch.max_num_seqs)
    return _first_that_starts(question, tries, "fewer requests at once: the others wait")


def _more_of_the_card(question: PlanQuestion) -> PlanChange | None:
    most = _highest_share(question)
    now = decide_plan(question).batch
    if now is None:
        return None
    low, high = int(now.gpu_memory_utilization * 100) + 1, int(most * 100)
    if low > high or not decide_plan(_with(question, gpu_memory_utilization=high / 100)).starts:
        return None
    while low < high:  # a larger share of the GPU never makes a start fail
        middle = (low + high) // 2
        if decide_plan(_with(question, gpu_memory_utilization=middle / 100)).starts:
            high = middle
        else:
            low = middle + 1
    return describe_change(question, _with(question, gpu_memory_utilization=high / 100), "less room for others on the GPU")


def _highest_share(question: PlanQuestion) -> float:
    """Return the largest gpu-memory-utilization that leaves room for memory that vLLM does not count, and for other users of the GPU."""
    cards = question.cards[: question.serving.ranks]
    shares = [(card.memory - card.used - outside_bytes(question.serving, card)) / card.memory for card in cards]
    return min([_HIGHEST_UTILIZATION, *shares])


def _without_graphs(question: PlanQuestion) -> PlanChange | None:
    tries = [] if question.serving.enforce_eager else [_with(question, enforce_eager=True)]
    return _first_that_starts(question, iter(tries), "no CUDA graphs and nothing compiled: slower answers")


def _smaller_cache(question: PlanQuestion) -> PlanChange | None:
    tries = [_with(question, kv_cache_dtype="fp8")] if _can_shrink_cache(question) else []
    return _first_that_starts(question, iter(tries), "a KV cache of half the precision")


def _smaller_weights(question: PlanQuestion) -> PlanChange | None:
    tries = [_with(question, quantization="fp8")] if _can_shrink_weights(question) else []
    return _first_that_starts(question, iter(tries), "weights of half the precision")


def _can_shrink_cache(question: PlanQuestion) -> bool:
    return question.serving.kv_cache_dtype == "auto" and _oldest(question) >= (8, 9)


def _can_shrink_weights(question: PlanQuestion) -> bool:
    return not question.config.quantization and not question.serving.quantization and _oldest(question) >= (8, 0)


def _oldest(question: PlanQuestion) -> tuple[int, int]:
    return min((card.capability for card in question.cards), default=(0, 0))


def _more_cards(question: PlanQuestion) -> PlanChange | None:
    found = _all_cards(question)
    return describe_change(question, found[0], "all GPUs that are there") if found else None


def _new_cards(question: PlanQuestion) -> Iterator[PlanChange]:
    least = min(question.cards, key=lambda card: card.memory, default=None)
    if least is None:
        return
    whole = decide_plan(_with(question, tensor_parallel=1, pipeline_parallel=1, layer_partition=()))
    each = least.memory * (whole.batch.gpu_memory_utilization if whole.batch else 1)
    counts = [count for count in _MORE if count > len(question.cards) and count * each > _SURE_PART * sum(whole.weights)]
    for count in counts[: count_tries(question)]:
        if found := decide_split(replace(question, cards=(least,) * count)):
            yield describe_change(question, found[0], f"{count} GPUs of {format_size(least.memory)}")
            return


def _all_cards(question: PlanQuestion) -> tuple[PlanQuestion, ...]:
    """Return the ways to use all GPUs, if some are unused or cannot be used as configured."""
    is_split = question.serving.ranks == len(question.cards) and bool(decide_plan(question).budgets)
    return () if is_split else decide_split(question)


_ATTEMPTS: tuple[_Try, ...] = (_shorter, _fewer, _more_of_the_card, _without_graphs, _smaller_cache, _smaller_weights, _more_cards)


def _together(question: PlanQuestion) -> Iterator[PlanChange]:
    """Return the first combination that starts, each step added to those before it; quantising the weights comes last."""
    plan = decide_plan(question)
    if plan.batch is None:
        return
    least = _fewest(plan.batch, 4, _LEAST_BATCHED)
    steps: list[dict[str, object]] = [
        _fewest(plan.batch, _FEW, _BATCHED),
        {"gpu_memory_utilization": max(plan.batch.gpu_memory_utilization, int(_highest_share(question) * 100) / 100)},
        {"enforce_eager": True},
        least,
    ]
    halves: list[dict[str, object]] = [{"kv_cache_dtype": "fp8"}] if _can_shrink_cache(question) else []
    halves += [{"quantization": "fp8"}] if _can_shrink_weights(question) else []
    for chain in (steps, [*steps, *halves]):
        for start in (question, *_all_cards(_with(question, max_model_len=-1, **least))):
            if found := _first_of_chain(start, chain, plan.batch.max_model_len):
                yield describe_change(question, found, "several things at once: the context, the requests, and what follows")
                return


def _first_of_chain(start: PlanQuestion, chain: list[dict[str, object]], most: int) -> PlanQuestion | None:
    """Return the question after the fewest steps with which it starts, with at most `most` tokens."""
    for step in chain:
        start = _with(start, **step)
        attempt = decide_plan(_with(start, max_model_len=-1))
        length = _rounded(attempt.sure_context, start.config.max_positions)
        if length >= _LEAST_CONTEXT and decide_plan(found := _with(start, max_model_len=min(length, most))).starts:
            return found
    return None


def _tokens_for(seqs: int) -> int:
    """Return the size of batches that suffices for so many requests at once."""
    return _BATCHED if seqs > _FEW else _LEAST_BATCHED


def _fewest(batch: Batch, seqs: int, tokens: int) -> dict[str, object]:
    """Return the options that limit the requests and the tokens at once."""
    found: dict[str, object] = {"max_num_seqs": seqs} if batch.max_num_seqs > seqs else {}
    return found | ({"max_num_batched_tokens": tokens} if batch.max_num_batched_tokens > tokens else {})


def _candidates(question: PlanQuestion) -> Iterator[PlanQuestion]:
    """Return the questions to try for the largest context. The one with the smallest change comes first."""
    share = int(_highest_share(question) * 100) / 100
    plan = decide_plan(question)
    if question.serving.gpu_memory_utilization is None and plan.batch and 0 < share < plan.batch.gpu_memory_utilization:
        question = _with(question, gpu_memory_utilization=share)  # the memory that vLLM's default asks for would not be free
    counts = [None] if question.serving.max_num_seqs or plan.batch is None else [None, 64, _FEW, 4]
    for count in counts:
        tried = question
        if count is not None and plan.batch:
            if count >= plan.batch.max_num_seqs:
                continue
            tokens = question.serving.max_num_batched_tokens or _tokens_for(count)
            tried = _with(question, **_fewest(plan.batch, count, tokens))
        yield tried
        yield from _all_cards(_with(tried, max_model_len=-1))


def _rounded(length: int, most: int) -> int:
    return length if length >= most else length // _CONTEXT_STEP * _CONTEXT_STEP
