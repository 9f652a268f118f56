"""Verdicts from the kernel's messages about GPUs, which tell faults of the hardware, of the driver and of the program apart."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from vllm_safe.causes.messages import FOLLOWS
from vllm_safe.common.sizes import MIB, format_span
from vllm_safe.contract.recorded_run import Event
from vllm_safe.diagnose.error_verdicts import error_evidence, last_lines, launcher_evidence
from vllm_safe.diagnose.verdict import MOMENTS, SHORTLY, Case, Evidence, Verdict
from vllm_safe.diagnose.xids import AFTER, CARD, LOST, PROGRAM, UNKNOWN, WEAR, WHERE, Xid, demand, explain_fault
from vllm_safe.record.card_usage import visible_cards

_WAITED = {"stall", "hang", "start-timeout"}  # causes that are noticed long after the fault behind them
_ENDED = {"exited", "", *_WAITED}
_FIRST = ("xid", "lost", "uvm", "init", "link")  # kinds of faults, the most certain first
_ACTION = 154  # the Xid that names the recovery that the driver asks for
_OF_CARDS = re.compile(r"CUDA|NVML|NVIDIA|driver|device type|GPUs", re.IGNORECASE)
_GROWN = 64 * MIB  # the least growth of a card that the model uses; CUDA alone takes more
_OTHERS_GREW = 1024 * MIB


class Fault(NamedTuple):
    """An event of the kind "nvidia", with its meaning."""

    event: Event
    kind: str
    meaning: Xid

    @property
    def data(self) -> Mapping[str, Any]:
        """The fields that record/card_faults.py parsed from the line."""
        return self.event.data


def driver_mismatched(case: Case) -> Verdict | None:
    """Decide whether CUDA could not start because the driver's libraries and its module differ, or its module does not bind the cards."""
    if case.was_ready or case.end.cause not in _ENDED or not _is_of_cards(case):
        return None
    found = [
        event for event in case.of("nvidia") if event.data.get("kind") in {"mismatch", "module"} and event.data.get("own") is not False
    ]
    if not found:
        return None
    data = found[-1].data
    if data["kind"] == "mismatch":
        versions = f" ({data['client']}, while {data['module']} is loaded)" if data.get("client") and data.get("module") else ""
        what = f"the NVIDIA libraries and the loaded NVIDIA kernel module differ in version{versions}, as after an upgrade"
        hint = "Neither waiting nor a restart of the model helps: reboot, so that the kernel loads the new module."
    else:
        what = "the NVIDIA kernel module does not support these GPUs, or not with this kernel"
        hint = (
            "The kernel's message gives the reason: nouveau is bound to the GPUs, they are too old or too new for the module, "
            "or it was built for another kernel."
        )
    return Verdict("no-gpu", f"{case.name} could not use the GPUs: {what}.", case.end.time, evidence=_proof(case), hint=hint)


def card_failed(case: Case) -> Verdict | None:
    """Decide whether a card, its link or its firmware failed."""
    if case.end.cause not in _ENDED:
        return None
    faults = [fault for fault in _faults(case) if _is_failure(fault) and _may_have_ended(case, fault)]
    faults = [fault for fault in faults if fault.meaning.of != WEAR or _is_vague(case)]
    if not faults:
        return None
    root = min(faults, key=_certainty)
    same = [fault for fault in faults if (fault.kind, fault.meaning) == (root.kind, root.meaning)]
    cards = list(dict.fromkeys(_card(case, fault) for fault in same))
    xid = f" (Xid {root.data['xid']})" if root.kind == "xid" else ""
    wanted = next((text for fault in reversed(faults) if (text := demand(str(fault.data.get("action", ""))))), "")
    sentence = f"{case.name} {_how(case)} because of {' and '.join(cards)}: {root.meaning.what}{xid}{_how_long_before(case, same)}."
    return Verdict("gpu-fault", sentence, case.end.time, evidence=_proof(case), hint=_todo(root, wanted))


def card_misused(case: Case) -> Verdict | None:
    """Decide whether, according to the driver, the program misused a card.

    This applies only where nothing else is known about the end, or only that CUDA failed.
    """
    if case.end.cause not in _ENDED or not _is_vague(case):
        return None
    faults = [fault for fault in _faults(case) if fault.meaning.of == PROGRAM and _may_have_ended(case, fault)]
    if not faults:
        return None
    root = faults[0]
    sentence = f"{case.name} {_how(case)} because of a program fault on {_card(case, root)}: {root.meaning.what} (Xid {root.data['xid']})."
    return Verdict("gpu-program-fault", sentence, case.end.time, evidence=_proof(case), hint=root.meaning.todo)


def card_evidence(case: Case) -> list[Evidence]:
    """Return the kernel's messages about the cards that this model uses, each with its meaning."""
    return [Evidence(fault.event.time, f"{fault.event.text}{_meaning(fault)}") for fault in _faults(case)]


def _faults(case: Case) -> list[Fault]:
    """Return the faults of the cards that the model uses, without those that another process caused."""
    found = []
    for event in case.of("nvidia"):
        fault = Fault(event, str(event.data.get("kind")), explain_fault(event.data) or Xid("", "", ""))
        others = event.data.get("own") is False and fault.meaning.of not in {CARD, WEAR}
        if not others and _uses(case, str(event.data.get("pci", ""))):
            found.append(fault)
    return found


def _is_failure(fault: Fault) -> bool:
    if fault.kind == "link":
        return fault.data.get("severity") == "fatal"
    if fault.data.get("xid") == _ACTION:
        return bool(demand(str(fault.data.get("action", ""))))
    return fault.meaning.of in {CARD, WEAR} and fault.data.get("severity") != "non-fatal"


def _may_have_ended(case: Case, fault: Fault) -> bool:
    """Decide whether a fault may have caused the end.

    It may if it came shortly before the end, or before a wait that did not succeed. A fault that lasts until a reset counts at any time.
    """
    before = case.end.time - fault.event.time
    if fault.kind == "init":
        return not case.was_ready and _is_of_cards(case)
    if before < SHORTLY:
        return True
    waited = case.end.cause in _WAITED or (case.message is not None and case.message.code in {"nccl-timeout", "step-timeout"})
    stays = fault.meaning == LOST or fault.kind == "uvm" or (waited and (before < _patience(case) or not case.was_ready))
    return stays and not _went_on(case, fault.event.time)


def _went_on(case: Case, time: float) -> bool:
    """Decide whether the model generated tokens after that moment: the fault was then of another card, or harmless."""
    tokens = [sample.tokens for sample in case.run.samples if sample.time > time + MOMENTS and sample.tokens is not None]
    return bool(tokens) and tokens[-1] > tokens[0]


def _patience(case: Case) -> float:
    """Return the seconds that may pass until a hang is noticed.

    An idle model is asked for a token after half of hang_timeout, and then has the whole hang_timeout to answer.
    """
    return SHORTLY + 1.5 * case.run.start.times.get("hang_timeout", SHORTLY)


def _certainty(fault: Fault) -> tuple[bool, bool, bool, int, float]:
    """Return a sort key, the most certain fault first.

    Lost cards come first, then faults of their own, then the recovery that the driver asks for, each in the order of time.
    """
    follows = fault.data.get("xid") == _ACTION
    return (fault.meaning != LOST, follows, fault.meaning.of == WEAR, _FIRST.index(fault.kind), fault.event.time)


def _how(case: Case) -> str:
    if case.end.cause in {"stall", "hang"}:
        return "hung"
    return "was not ready in time" if case.end.cause == "start-timeout" else "ended"


def _how_long_before(case: Case, faults: Sequence[Fault]) -> str:
    """Return how long the server went on after the first of the faults, to follow what happened."""
    before = case.over_at - min(fault.event.time for fault in faults)
    if before < 0:
        return ""
    return f", {format_span(max(1.0, before))} before the server {'was ended' if case.end.cause in _WAITED else 'ended'}"


def _is_vague(case: Case) -> bool:
    """Decide whether the server's own error says no more than that CUDA, or a process, has failed."""
    message = case.message
    if message is None or message.code in FOLLOWS:
        return True
    return message.is_of_cards or (not message.code and "CUDA" in message.text)


def _is_of_cards(case: Case) -> bool:
    """Decide whether the server's own error is about cards, or says nothing specific."""
    return _is_vague(case) or bool(case.message and _OF_CARDS.search(case.message.text))


def _todo(root: Fault, wanted: str) -> str:
    """Return what to do. wanted: the recovery that the driver asks for, which is not enough for a lost card."""
    if root.meaning == LOST or not wanted:
        return root.meaning.todo
    return wanted if root.data.get("xid") == _ACTION else f"{root.meaning.todo} {wanted}"


def _proof(case: Case) -> tuple[Evidence, ...]:
    """Return the evidence besides the kernel's own lines, which diagnosis.py adds to every verdict."""
    return (*launcher_evidence(case), *(error_evidence(case) or last_lines(case)))


def _meaning(fault: Fault) -> str:
    if fault.kind != "xid" or fault.data.get("xid") == _ACTION:
        return ""
    more = {AFTER: "; not evidence of a cause", UNKNOWN: f"; {WHERE}"}.get(fault.meaning.of, "")
    return f" - {fault.meaning.what}{more}"


# --- which card


def _cards(case: Case) -> Sequence[Mapping[str, Any]]:
    """Return the cards in the order of nvidia-smi; () for a run that an older version recorded."""
    cards = case.run.start.host.get("cards")
    return [card for card in cards if isinstance(card, dict)] if isinstance(cards, list) else ()


def _index(case: Case, pci: str) -> int | None:
    return next((number for number, card in enumerate(_cards(case)) if pci and str(card.get("pci", "")).startswith(pci)), None)


def _card(case: Case, fault: Fault) -> str:
    """Return the name of a card for a person: "card 1 (NVIDIA GeForce RTX 3060, 0000:01:00)"."""
    pci = str(fault.data.get("pci", ""))
    index = _index(case, pci)
    if index is None:
        return f"the GPU at {pci}" if pci and fault.kind != "link" else f"the GPUs behind {pci}" if pci else "the GPUs"
    name = str(_cards(case)[index].get("name") or "")
    return f"GPU {index} ({name}, {pci})" if name else f"GPU {index} ({pci})"


def _uses(case: Case, pci: str) -> bool:
    """Decide whether the model uses a card, as far as that is known.

    The visible devices decide; without them, the growth of this card's memory while that of the others did not grow.
    """
    index, cards = _index(case, pci), _cards(case)
    if index is None:
        return True
    seen = visible_cards(case.run.start.env, [str(card.get("name")) for card in cards])
    if seen is not None:
        return index in seen
    used = [[gpu.used for gpu in sample.gpus] for sample in case.run.samples if len(sample.gpus) == len(cards)]
    grown = [max(card) - card[0] for card in zip(*used, strict=True)]
    return not grown or grown[index] >= _GROWN or max(grown) < _OTHERS_GREW
