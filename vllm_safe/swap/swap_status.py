"""The output of `vllm-safe swap status`, as JSON and as lines."""

from __future__ import annotations

from typing import Any

from vllm_safe.common.errors import Failure
from vllm_safe.common.sizes import format_size
from vllm_safe.config import settings
from vllm_safe.host.host_facts import read_host
from vllm_safe.swap.swap_decision import decide_swap
from vllm_safe.swap.swapfile_facts import read_swap


def read_swap_status(swap: settings.Swap, problem: str) -> dict[str, Any]:
    """Read the answer with --json; sizes in bytes.

    problem: the error in the configuration, or ""; with an error, `swap` has the defaults.
    """
    host = read_host(behind=swap.file)
    facts = read_swap(swap.file, host)
    ours = {str(file.path) for file in facts.files if not file.foreign}
    answer: dict[str, Any] = {
        "size": host.swap,
        "used": host.swap_used,
        "areas": [
            {"path": area.path, "kind": area.kind, "size": area.size, "used": area.used, "ours": area.path in ours} for area in host.swaps
        ],
        "config": None if problem else {"file": str(swap.file), "size": swap.size, "keep_free": str(swap.keep_free)},
        "problem": problem,
        "steps": [],
        "way_out": "",
    }
    if not problem:
        try:
            answer["steps"] = [step.describe() for step in decide_swap(swap, host, facts)]
        except Failure as failure:
            answer |= {"problem": failure.message, "way_out": failure.hint}
    return answer


def swap_as_lines(answer: dict[str, Any]) -> list[str]:
    """Return the answer as lines for a person."""
    lines = [f"{format_size(answer['size'])} of swap are on, {format_size(answer['used'])} in use" if answer["areas"] else "no swap is on"]
    width = max((len(area["path"]) for area in answer["areas"]), default=0)
    for area in answer["areas"]:
        whose = "made by vllm-safe" if area["ours"] else area["kind"]
        lines.append(f"  {area['path']:<{width}}  {format_size(area['size']):>9}  {format_size(area['used']):>9} in use  {whose}")
    if config := answer["config"]:
        wanted = "none (uses the swap that is active)" if config["size"] is None else f"{format_size(config['size'])} at {config['file']}"
        lines.append(f"configured: {wanted}")
    if answer["problem"]:
        lines.append(f"problem: {answer['problem']}")
    if answer["way_out"]:
        lines.append(f"  {answer['way_out']}")
    if answer["steps"]:
        lines += ["`vllm-safe swap create` would:", *(f"  {step}" for step in answer["steps"])]
    return lines
