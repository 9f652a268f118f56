"""What is said to do about an error: settings to change, and the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from vllm_safe.decide.why.verdict import Case, Change
from vllm_safe.launch.messages import Message
from vllm_safe.record.cards import visible_cards

_WIDE = 4  # lanes: what a slot or an M.2 adapter has at least; a riser has one
_OF_NCCL = {"nccl-error": "NCCL reported an error", "nccl-timeout": "NCCL timed out"}


class Advice(NamedTuple):
    """What to change, and what to do besides."""

    changes: tuple[Change, ...] = ()
    hint: str = ""


Adviser = Callable[[Case, Message], Advice]


def do(hint: str) -> Adviser:
    """What to do, without a setting."""
    return lambda _case, _message: Advice(hint=hint)


def arg(case: Case, name: str, new: str, reason: str) -> Change:
    """A change of an option of vLLM."""
    return Change(case.path(f"args.{name}"), case.arg(name), new, reason)


def env(case: Case, name: str, new: str, reason: str) -> Change:
    """A change of a variable."""
    return Change(case.path(f"env.{name}"), case.env(name), new, reason)


def riser(case: Case) -> tuple[Change, ...]:
    """The profile for cards on risers, where something recorded speaks for risers."""
    if not (evidence := on_risers(case)):
        return ()
    reason = f"{evidence}; cards on risers hang when they talk to each other directly: NCCL_P2P_DISABLE=1"
    return (Change(case.path("profile"), case.run.start.profile, "pcie-riser", reason),)


def on_risers(case: Case) -> str:
    """The recorded evidence that the model's cards are on risers, in a few words: narrow links, or an error of NCCL; "" without any."""
    start = case.run.start
    cards = [card for card in start.host.get("cards", ()) if isinstance(card, Mapping)]
    seen = visible_cards(start.env, [str(card.get("name")) for card in cards])
    lanes = [card.get("lanes") for index, card in enumerate(cards) if seen is None or index in seen]
    narrow = [width for width in lanes if isinstance(width, int) and 0 < width < _WIDE]
    if narrow:
        return f"{len(narrow)} of {len(lanes)} cards have a PCIe link of x{max(narrow)}{' or less' if len(set(narrow)) > 1 else ''}"
    return _OF_NCCL.get(case.message.code, "") if case.message is not None else ""
