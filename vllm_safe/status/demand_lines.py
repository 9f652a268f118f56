"""The line about a model on demand: what keeps it up, and for how long. Pure."""

from __future__ import annotations

from typing import NamedTuple

from vllm_safe.common.sizes import format_span
from vllm_safe.contract.state_file import State


class DemandStatus(NamedTuple):
    """The socket and the preparation of a model. listens: a request would start it. waits_for: what its preparation waits for, or ""."""

    listens: bool = False
    waits_for: str = ""


def demand_line(seen: DemandStatus, state: State | None, now: float, *, running: bool) -> str:
    """Return the line, or "" if requests neither start nor stop the model. now: Unix seconds. running: the model has processes."""
    if not running:
        return f"on demand: {seen.waits_for or 'the next request starts it'}" if seen.listens or seen.waits_for else ""
    if state is None or state.phase != "ready":
        return ""
    if state.used is None:
        return "on demand, but started by hand: it stays up" if seen.listens else ""
    if state.running or state.waiting:
        return f"on demand: stops {format_span(state.idle_timeout)} after its last request" if state.idle_timeout else "on demand"
    idle = max(0.0, now - state.used)
    if not state.idle_timeout:
        return f"on demand: no request for {format_span(idle)}; stays until another model needs its room"
    return f"on demand: no request for {format_span(idle)}; stops in {format_span(max(1.0, state.idle_timeout - idle))}"
