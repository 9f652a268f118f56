"""A plan as lines for people, and as the object that --json prints."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from vllm_safe.common.sizes import format_size
from vllm_safe.plan.host_needs import HostNeeds
from vllm_safe.plan.plan_question import Plan, PlanChange, PlanLine
from vllm_safe.plan.serving import Card
from vllm_safe.plan.start_plan import StartPlan

_ANSWERS = {True: "starts", False: "does not start", None: "is not certain to start"}


def plan_heading(whole: StartPlan) -> str:
    """Return the answer in one line."""
    return f"{whole.name} {_ANSWERS[whole.starts]}: {whole.reason}."


def plan_rows(whole: StartPlan) -> list[tuple[str, str, str]]:
    """Return the lines as (what, how much, why). An estimate has a tilde before it."""
    return [_row(line) for line in (*whole.plan.lines, *whole.host.lines)]


def _row(line: PlanLine) -> tuple[str, str, str]:
    return line.label, line.text if line.exact else f"~{line.text}", line.why


def describe_cards(cards: Sequence[Card]) -> str:
    """Return the GPUs in one line, with equal ones together."""
    kinds: dict[tuple[str, int, tuple[int, int]], int] = {}
    for card in cards:
        kind = (card.name, card.memory, card.capability)
        kinds[kind] = kinds.get(kind, 0) + 1
    texts = (
        f"{count} x {format_size(memory)} sm{major}.{minor}{f' ({name})' if name else ''}"
        for (name, memory, (major, minor)), count in kinds.items()
    )
    return ", ".join(texts)


def change_lines(change: PlanChange, prefix: str) -> list[str]:
    """Return the settings of a change as lines of config.yaml. prefix: the path of the model's section, such as models.qwen72b."""
    parts = [("args", change.args), ("env", change.env)]
    return [f"{prefix}.{part}.{key}: {value}" for part, values in parts for key, value in values]


def paste_lines(change: PlanChange) -> list[str]:
    """Return the settings of a change to paste into the section of a model."""
    lines = []
    for part, values in (("args", change.args), ("env", change.env)):
        if values:
            lines += [f"{part}:", *(f"  {key}: {_quoted(value, part)}" for key, value in values)]
    return lines


def _quoted(value: str, part: str) -> str:
    return f'"{value}"' if part == "env" else value


def plan_object(whole: StartPlan) -> dict[str, object]:
    """Return the object for --json. Its keys are documented in the manual and do not change."""
    plan, host = whole.plan, whole.host
    return {
        "name": whole.name,
        "starts": whole.starts,
        "reason": whole.reason,
        "source": whole.source,
        "weights_bytes_per_gpu": list(plan.weights),
        "kv_bytes_per_gpu": list(plan.kv_bytes),
        "kv_tokens": plan.kv_tokens,
        "longest_context": plan.longest_context,
        "requests_at_once": round(plan.requests_at_once, 2),
        "host_bytes": host.memory,
        "shared_memory_bytes": host.shared,
        "load_seconds": None if host.load is None else round(host.load, 1),
        "exact": _exact(plan, host),
        "unknown": list(plan.unknown),
        "lines": [
            {"label": line.label, "bytes": line.size, "text": line.text, "exact": line.exact, "why": line.why} for line in _all(whole)
        ],
        "changes": [_change(change) for change in whole.changes],
        "fit": None if whole.fit is None else _change(whole.fit),
        "notes": list(whole.notes),
    }


def _all(whole: StartPlan) -> Iterable[PlanLine]:
    return (*whole.plan.lines, *whole.host.lines)


def _change(change: PlanChange) -> dict[str, object]:
    return {"args": dict(change.args), "env": dict(change.env), "cost": change.cost}


_KEYS = {"weights": "weights_bytes_per_gpu", "kv_bytes": "kv_bytes_per_gpu"}


def _exact(plan: Plan, host: HostNeeds) -> list[str]:
    """Return the keys of the object whose values are exact."""
    names = [_KEYS.get(name, name) for name in sorted(plan.exact)]
    return names + (["host_bytes"] if host.exact else [])
