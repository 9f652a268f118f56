"""A scenario of models on demand: requests start them, one makes room for another on the same GPU, and an idle one leaves nothing there."""

from __future__ import annotations

import time

from tests.beds.tiny_model import SENTENCE
from tests.gpu.box import Box, Figures, Wrong, cards, cards_are_free, run, wait_for

# By model: its share of the GPU, and idle_timeout. The first two do not fit beside each other.
MODELS = {"first": (0.6, "10min"), "second": (0.6, "15s"), "beside": (0.1, "10min")}


def on_demand(box: Box) -> Figures:
    """Ask three models of which two fit, each by its own port."""
    before = cards()
    run("systemctl restart vllm-on-demand")
    try:
        figures: Figures = {"first": _ask(box, "first"), "beside": _ask(box, "beside")}
        _must_be_up(box, "first", "beside")
        figures["second, which the first makes room for"] = _ask(box, "second")
        _must_be_up(box, "second", "beside")
        said = str(box.why("first")["sentence"])
        if said != "first was stopped to make room for second.":
            raise Wrong(f"why says: {said}")
        figures["idle, and ended, after"] = round(wait_for("second has ended", lambda: "second" not in _up(box), 60), 1)
        run("systemctl stop vllm@beside")
        return figures | {"cards free after": cards_are_free(before)}
    finally:
        run("systemctl stop vllm-on-demand; systemctl stop vllm@first vllm@second vllm@beside", check=False)


def _ask(box: Box, name: str) -> float:
    """Ask a model for the sentence that it knows; return the seconds, with those of its start. Raises Wrong."""
    start = time.monotonic()
    if (answer := box.ask(name, SENTENCE[:15], 20, timeout=300)) != SENTENCE[15:35]:
        raise Wrong(f"{name} answers {answer!r}")
    return round(time.monotonic() - start, 1)


def _must_be_up(box: Box, *names: str) -> None:
    if _up(box) != set(names):
        raise Wrong(f"{', '.join(sorted(_up(box)))} are up, and not {', '.join(names)}")


def _up(box: Box) -> set[str]:
    return {name for name in MODELS if box.shown(name)["ActiveState"] not in {"inactive", "failed"}}
