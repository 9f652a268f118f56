"""The finding on whether a model fits on its GPUs, for `vllm-safe check` and for the start itself."""

from __future__ import annotations

from dataclasses import replace

from vllm_safe.common.findings import Finding, failed, passed, warned
from vllm_safe.common.sizes import format_size
from vllm_safe.plan.host_needs import HostLimits
from vllm_safe.plan.plan_facts import PlanFacts
from vllm_safe.plan.plan_text import change_lines
from vllm_safe.plan.start_plan import StartPlan, decide_start_plan


def find_plan_problem(name: str, facts: PlanFacts, limits: HostLimits, *, refuses: bool) -> Finding:
    """Return the finding. GPU memory that other programs use may soon be free again: it does not make a start fail.

    refuses: a model that cannot fit fails the check; otherwise the finding is a warning.
    """
    alone = decide_start_plan(name, replace(facts, cards=tuple(replace(card, used=0) for card in facts.cards)), limits)
    if alone.starts is False:
        finding = failed if refuses else warned
        return finding(f"{name} cannot start: {alone.reason}", _way_out(alone, refused=refuses))
    beside = decide_start_plan(name, facts, limits)
    if beside.plan.doubtful and beside.plan.starts and not beside.host.problem:
        return passed(f"{name} probably fits, but the estimate leaves something out ({beside.plan.unknown[0]})")
    if not beside.starts:
        return warned(f"{name} may not start: {beside.reason}", _way_out(beside))
    weights, tokens = format_size(max(beside.plan.weights)), f"{beside.plan.kv_tokens:,}"
    return passed(f"{name} fits: {weights} of weights on a GPU, {tokens} tokens in its KV cache")


def _way_out(whole: StartPlan, *, refused: bool = False) -> str:
    more = f"Details: vllm-safe plan {whole.name}"
    if refused:
        more += f". To try it all the same: models.{whole.name}.plan: warn"
    if whole.host.problem:
        return f"{whole.host.hint} {more}"
    if not whole.changes:
        return more
    return f"Set {', '.join(change_lines(whole.changes[0], f'models.{whole.name}'))}. {more}"
