"""Scenarios in which a model becomes ready, answers right and leaves nothing on the GPUs, and what that costs."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from tests.beds.tiny_model import SENTENCE
from tests.gpu.box import MIB, Box, Figures, Wrong, cards, cards_are_free, run


def _serves(box: Box, name: str, *, pace: bool = False) -> Figures:
    """Start a model, which must become ready, answer right and leave nothing on the GPUs."""
    start = box.must_start(name)
    figures: Figures = {
        "ready": start.seconds,
        "phases": start.phases,
        "memory GiB": box.memory(name),
        "cards MiB": [used // MIB for used in cards()],
    }
    if pace:
        figures["tokens/s"] = [box.pace(name), box.pace(name, at_once=16)]
    figures["stop"] = box.stop(name)
    return figures


def starts(name: str, *, pace: bool = False, twice: bool = False, alone: bool = False) -> Callable[[Box], Figures]:
    def show(box: Box) -> Figures:
        before = cards()
        first = _serves(box, name, pace=pace) | ({"cards free after": cards_are_free(before)} if alone else {})
        return first | ({"second": _serves(box, name, pace=pace)} if twice else {})

    return show


def side_by_side(box: Box) -> Figures:
    """Start two models together, each on one GPU; each sees only its own."""
    before = cards()
    run(["systemctl", "start", "vllm@left", "vllm@right"], timeout=300)
    figures: Figures = {}
    for name in ("left", "right"):
        figures[name] = box.must_answer(name)
    used = [now - then for now, then in zip(cards(), before, strict=True)]
    if min(used[:2]) < 256 * MIB:
        raise Wrong(f"one card is not used: {used}")
    figures |= {"cards MiB": [size // MIB for size in used]}
    run(["systemctl", "stop", "vllm@left"])
    figures["left free after"] = cards_are_free([before[0], before[1] + 1024 * 1024 * MIB])
    if box.ask("right", SENTENCE[:15], 20) != SENTENCE[15:35]:
        raise Wrong("right answers wrong when left has gone")
    run(["systemctl", "stop", "vllm@right"])
    return figures | {"right free after": cards_are_free(before)}


def spawn_and_fork(box: Box) -> Figures:
    """Compare spawned and forked workers: two models at the same time, each on two CPUs of its own."""
    figures: Figures = {}

    def measure(name: str) -> None:
        start = box.must_start(name, 590)
        figures[name] = {"ready": start.seconds, "phases": start.phases, "memory GiB": box.memory(name), "processes": len(box.pids(name))}

    with ThreadPoolExecutor() as pool:
        list(pool.map(measure, ("spawn", "fork")))
    return figures | {"stop": {name: box.stop(name) for name in ("spawn", "fork")}}
