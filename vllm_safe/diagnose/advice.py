"""Advice on an error: settings to change, and a hint about everything else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from vllm_safe.causes.messages import Message
from vllm_safe.diagnose.verdict import Case, SettingChange
from vllm_safe.driver.card_facts import WIDE_LINK
from vllm_safe.record.card_usage import visible_cards

_OF_NCCL = {"nccl-error": "NCCL reported an error", "nccl-timeout": "NCCL timed out"}


class Advice(NamedTuple):
    """Settings to change, and a hint about what else to do."""

    changes: tuple[SettingChange, ...] = ()
    hint: str = ""


Adviser = Callable[[Case, Message], Advice]


def hint_of(hint: str) -> Adviser:
    """Return an adviser that gives only a hint."""
    return lambda _case, _message: Advice(hint=hint)


def change_argument(case: Case, name: str, new: str, reason: str) -> SettingChange:
    """Return a change of an option of `vllm serve`."""
    return SettingChange(case.path(f"args.{name}"), case.arg(name), new, reason)


def change_variable(case: Case, name: str, new: str, reason: str) -> SettingChange:
    """Return a change of an environment variable of the server."""
    return SettingChange(case.path(f"env.{name}"), case.env(name), new, reason)


def change_profile_to_riser(case: Case) -> tuple[SettingChange, ...]:
    """Return the change to the profile for cards on PCIe risers; () without recorded evidence of risers."""
    if not (evidence := riser_evidence(case)):
        return ()
    reason = f"{evidence}; GPUs on risers hang with peer-to-peer transfers: the profile sets NCCL_P2P_DISABLE=1"
    return (SettingChange(case.path("profile"), case.run.start.profile, "pcie-riser", reason),)


def riser_evidence(case: Case) -> str:
    """Return the recorded evidence that the model's cards are on risers: narrow links, or an error of NCCL; "" if there is none."""
    start = case.run.start
    cards = [card for card in start.host.get("cards", ()) if isinstance(card, Mapping)]
    seen = visible_cards(start.env, [str(card.get("name")) for card in cards])
    lanes = [card.get("lanes") for index, card in enumerate(cards) if seen is None or index in seen]
    narrow = [width for width in lanes if isinstance(width, int) and 0 < width < WIDE_LINK]
    if narrow:
        return f"{len(narrow)} of {len(lanes)} GPUs have a PCIe link of x{max(narrow)}{' or less' if len(set(narrow)) > 1 else ''}"
    return _OF_NCCL.get(case.message.code, "") if case.message is not None else ""
