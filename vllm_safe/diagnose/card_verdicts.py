"""What the kernel said of the cards decides between a card and the program: faults of hardware, of the driver, and of what ran on it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from vllm_safe.causes.messages import FOLLOWS
from vllm_safe.common.sizes import MIB
from vllm_safe.contract.recorded_run import Event
from vllm_safe.diagnose.error_verdicts import error_evidence, last_lines, launcher_evidence
from vllm_safe.diagnose.verdict import MOMENTS, SHORTLY, Case, Evidence, Verdict
from vllm_safe.diagnose.xids import AFTER, CARD, LOST, PROGRAM, UNKNOWN, WEAR, WHERE, Xid, demand, explain_xid
from vllm_safe.record.card_usage import visible_cards

_WAITED = {"stall", "hang", "start-timeout"}  # causes that come long after what they come of
_ENDED = {"exited", "", *_WAITED}
_FIRST = ("xid", "lost", "uvm", "init", "link")  # what is more certain goes before
_ACTION = 154  # the Xid that says what the driver wants
_OF_CARDS = re.compile(r"CUDA|NVML|NVIDIA|driver|device type|GPUs", re.IGNORECASE)
_GROWN = 64 * MIB  # of a card that the model uses; CUDA alone takes more
_OTHERS_GREW = 1024 * MIB

_KINDS: Mapping[str, Xid] = {
    "lost": LOST,
    "init": Xid(
        CARD,
        "the driver could not initialise it",
        "Power the machine off and on. If it stays so: power supply, riser, the BIOS (Above 4G Decoding); journalctl -k -g NVRM says more.",
    ),
    "uvm": Xid(
        CARD,
        "the driver's memory manager (UVM) has failed, for every process on the machine",
        "Waiting, or starting it again, cannot help: reboot.",
    ),
    "link": Xid(
        CARD,
        "the PCIe link of its slot has failed",
        "Power the machine off and on; then look at the riser, its cable and its power, and try another slot.",
    ),
}


class Fault(NamedTuple):
    """An event of the kind "nvidia", and what it means."""

    event: Event
    kind: str
    meaning: Xid

    @property
    def data(self) -> Mapping[str, Any]:
        """What record/card_faults.py found in the line."""
        return self.event.data


def driver_mismatched(case: Case) -> Verdict | None:
    """The driver's libraries are not of the version of its module, or the module does not take the cards: CUDA cannot begin."""
    if case.was_ready or case.end.cause not in _ENDED or not _is_of_cards(case):
        return None
    found = [
        event for event in case.of("nvidia") if event.data.get("kind") in {"mismatch", "module"} and event.data.get("own") is not False
    ]
    if not found:
        return None
    data = found[-1].data
    if data["kind"] == "mismatch":
        versions = f" ({data['client']}, and {data['module']} is loaded)" if data.get("client") and data.get("module") else ""
        what = f"NVIDIA's libraries are not of the version of the driver in the kernel{versions}, as after an upgrade"
        hint = "Waiting, or starting it again, cannot help: reboot, so that the kernel loads the new one."
    else:
        what = "NVIDIA's driver in the kernel does not work with the cards, or not with this kernel"
        hint = "The kernel's line says why: nouveau has the cards, they are too old or too new for it, or it was built for another kernel."
    return Verdict("no-gpu", f"{case.name} could not use the cards: {what}.", case.end.time, evidence=_proof(case), hint=hint)


def card_failed(case: Case) -> Verdict | None:
    """A card, its link or its firmware failed."""
    if case.end.cause not in _ENDED:
        return None
    faults = [fault for fault in _faults(case) if _is_failure(fault) and _may_have_ended(case, fault)]
    faults = [fault for fault in faults if fault.meaning.of != WEAR or _is_vague(case)]
    if not faults:
        return None
    root = min(faults, key=_certainty)
    cards = list(dict.fromkeys(_card(case, fault) for fault in faults if (fault.kind, fault.meaning) == (root.kind, root.meaning)))
    xid = f" (Xid {root.data['xid']})" if root.kind == "xid" else ""
    wanted = next((text for fault in reversed(faults) if (text := demand(str(fault.data.get("action", ""))))), "")
    sentence = f"{case.name} {_how(case)} because of {' and '.join(cards)}: {root.meaning.what}{xid}."
    return Verdict("gpu-fault", sentence, case.end.time, evidence=_proof(case), hint=_todo(root, wanted))


def card_misused(case: Case) -> Verdict | None:
    """What the program had a card do was wrong, by the driver's word; nothing else is known of its end, or only that CUDA failed."""
    if case.end.cause not in _ENDED or not _is_vague(case):
        return None
    faults = [fault for fault in _faults(case) if fault.meaning.of == PROGRAM and _may_have_ended(case, fault)]
    if not faults:
        return None
    root = faults[0]
    sentence = f"{case.name} {_how(case)} by a fault of its program on {_card(case, root)}: {root.meaning.what} (Xid {root.data['xid']})."
    return Verdict("gpu-program-fault", sentence, case.end.time, evidence=_proof(case), hint=root.meaning.todo)


def card_evidence(case: Case) -> list[Evidence]:
    """What the kernel said of the cards that this model uses, each with its meaning."""
    return [Evidence(fault.event.time, f"{fault.event.text}{_meaning(fault)}") for fault in _faults(case)]


def _faults(case: Case) -> list[Fault]:
    """Those of cards that it uses; not what another process did."""
    found = []
    for event in case.of("nvidia"):
        kind, number = str(event.data.get("kind")), event.data.get("xid")
        meaning = explain_xid(number) if isinstance(number, int) else _KINDS.get(kind)
        fault = Fault(event, kind, meaning or Xid("", "", ""))
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
    """Shortly before the end; or before what was waited for in vain; or at any time, of what is broken until somebody resets it."""
    before = case.end.time - fault.event.time
    if fault.kind == "init":
        return not case.was_ready and _is_of_cards(case)
    if before < SHORTLY:
        return True
    waited = case.end.cause in _WAITED or (case.message is not None and case.message.code in {"nccl-timeout", "step-timeout"})
    stays = fault.meaning == LOST or fault.kind == "uvm" or (waited and (before < _patience(case) or not case.was_ready))
    return stays and not _went_on(case, fault.event.time)


def _went_on(case: Case, time: float) -> bool:
    """Whether it made tokens after that moment: then it was another card, or no matter."""
    tokens = [sample.tokens for sample in case.run.samples if sample.time > time + MOMENTS and sample.tokens is not None]
    return bool(tokens) and tokens[-1] > tokens[0]


def _patience(case: Case) -> float:
    """Seconds that a hang may take to be seen: at half of hang_timeout an idle one is asked for a token, and has all of it to answer."""
    return SHORTLY + 1.5 * case.run.start.times.get("hang_timeout", SHORTLY)


def _certainty(fault: Fault) -> tuple[bool, bool, bool, int, float]:
    """Less is more: lost cards first, then what fails by itself, then what the driver wants, in the order of time."""
    follows = fault.data.get("xid") == _ACTION
    return (fault.meaning != LOST, follows, fault.meaning.of == WEAR, _FIRST.index(fault.kind), fault.event.time)


def _how(case: Case) -> str:
    if case.end.cause in {"stall", "hang"}:
        return "hung"
    return "was not ready in time" if case.end.cause == "start-timeout" else "ended"


def _is_vague(case: Case) -> bool:
    """Whether its own words say no more than that something of CUDA, or a process, has failed."""
    message = case.message
    if message is None or message.code in FOLLOWS:
        return True
    return message.is_of_cards or (not message.code and "CUDA" in message.text)


def _is_of_cards(case: Case) -> bool:
    """Whether its own words are of cards at all, or say nothing."""
    return _is_vague(case) or bool(case.message and _OF_CARDS.search(case.message.text))


def _todo(root: Fault, wanted: str) -> str:
    """What to do; wanted: what the driver asks for, which is not enough for a lost card."""
    if root.meaning == LOST or not wanted:
        return root.meaning.todo
    return wanted if root.data.get("xid") == _ACTION else f"{root.meaning.todo} {wanted}"


def _proof(case: Case) -> tuple[Evidence, ...]:
    """The kernel's own lines are added to every verdict (decide.py); this is what the others said."""
    return (*launcher_evidence(case), *(error_evidence(case) or last_lines(case)))


def _meaning(fault: Fault) -> str:
    if fault.kind != "xid" or fault.data.get("xid") == _ACTION:
        return ""
    more = {AFTER: "; it proves nothing", UNKNOWN: f"; {WHERE}"}.get(fault.meaning.of, "")
    return f" - {fault.meaning.what}{more}"


# --- which card


def _cards(case: Case) -> Sequence[Mapping[str, Any]]:
    """As nvidia-smi counts them; () for a run that was recorded by an older version."""
    cards = case.run.start.host.get("cards")
    return [card for card in cards if isinstance(card, dict)] if isinstance(cards, list) else ()


def _index(case: Case, pci: str) -> int | None:
    return next((number for number, card in enumerate(_cards(case)) if pci and str(card.get("pci", "")).startswith(pci)), None)


def _card(case: Case, fault: Fault) -> str:
    """For a person: "card 1 (NVIDIA GeForce RTX 3060, 0000:01:00)"."""
    pci = str(fault.data.get("pci", ""))
    index = _index(case, pci)
    if index is None:
        return f"the card at {pci}" if pci and fault.kind != "link" else f"the cards behind {pci}" if pci else "the cards"
    name = str(_cards(case)[index].get("name") or "")
    return f"card {index} ({name}, {pci})" if name else f"card {index} ({pci})"


def _uses(case: Case, pci: str) -> bool:
    """Whether the model uses it, as far as that is known: by what it may see, or by the memory that was taken of it and not of others."""
    index, cards = _index(case, pci), _cards(case)
    if index is None:
        return True
    seen = visible_cards(case.run.start.env, [str(card.get("name")) for card in cards])
    if seen is not None:
        return index in seen
    used = [[gpu.used for gpu in sample.gpus] for sample in case.run.samples if len(sample.gpus) == len(cards)]
    grown = [max(card) - card[0] for card in zip(*used, strict=True)]
    return not grown or grown[index] >= _GROWN or max(grown) < _OTHERS_GREW
