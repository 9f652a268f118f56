"""Scenarios of `vllm-safe plan` on a GPU: what it foretells is what vLLM then does."""

from __future__ import annotations

import json
import re
from typing import Any

from tests.gpu.box import Box, Figures, Wrong, run, wait_for

_TOKENS = re.compile(r"KV cache size: ([\d,]+) tokens")


def _plan(name: str, *words: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run(["vllm-safe", "plan", name, "--json", *words], check=False))
    return found


def refused(box: Box) -> Figures:
    """Start a model for which the plan says that no memory would be left: it is refused; with `plan: warn`, vLLM ends with just that."""
    plan = _plan("refused")
    if plan["starts"] is not False or "no memory would be left for the KV cache" not in plan["reason"]:
        raise Wrong(f"planned: {plan['starts']}, {plan['reason']}")
    unstarted = box.must_fail("not-started", timeout=20)
    if unstarted["code"] != "refused" or plan["reason"] not in unstarted["sentence"]:
        raise Wrong(f"planned: {plan['reason']}; without `plan: warn`: {unstarted['code']}: {unstarted['sentence']}")
    why = box.must_fail("refused")
    if why["code"] not in {"kv-cache-too-small", "no-kv-cache", "cuda-memory"}:
        raise Wrong(f"planned: {plan['reason']}; vLLM: {why['code']}: {why['sentence']}")
    return {"planned": plan["reason"], "refused": unstarted["sentence"], "vLLM": why["sentence"]}


def fitted(box: Box) -> Figures:
    """Start a model with the longest context that the plan finds, which starts, and with 10 % more, which does not."""
    fit = _plan("fitted", "--fit")["fit"]
    if fit is None:
        raise Wrong("no context fits")
    args = {name: json.loads(value) for name, value in fit["args"].items()}
    box.change("fitted", args)
    box.must_start("fitted")
    box.stop("fitted")
    box.change("fitted", {"max-model-len": int(args["max-model-len"] * 1.1)})
    why = box.must_fail("fitted")
    if why["code"] != "kv-cache-too-small":
        raise Wrong(f"with 10 % more: {why['code']}: {why['sentence']}")
    return {"fit": args, "with 10 % more": why["sentence"]}


def exact(box: Box) -> Figures:
    """Start a model: the next plan of it has the figures that vLLM printed, and the plan before was close."""
    before = _plan("exact")
    box.must_start("exact", timeout=400)
    wait_for("the recorder has what vLLM reported", lambda: "kv_tokens" in _plan("exact")["exact"], 20)
    box.stop("exact")
    after = _plan("exact")
    printed = [int(text.replace(",", "")) for text in _TOKENS.findall(run(["journalctl", "--unit", "vllm@exact", "--output", "cat"]))]
    if not printed or after["kv_tokens"] != printed[-1]:
        raise Wrong(f"planned: {after['kv_tokens']} tokens; vLLM: {printed}")
    off = {key: round(max(_list(before[key])) / max(_list(after[key])) - 1, 4) for key in ("weights_bytes_per_gpu", "kv_tokens")}
    if abs(off["weights_bytes_per_gpu"]) > 0.01 or abs(off["kv_tokens"]) > 0.05:
        raise Wrong(f"the first plan was off: {off}")
    return {"tokens": printed[-1], "off before": off, "host GiB": [round(plan["host_bytes"] / (1 << 30), 2) for plan in (before, after)]}


def _list(value: int | list[int]) -> list[int]:
    return value if isinstance(value, list) else [value]
