"""Findings on the kernel's messages about the GPUs since boot: Xids, lost GPUs, errors of links."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vllm_safe.common.findings import Finding, passed, warned
from vllm_safe.common.sizes import format_span
from vllm_safe.contract.recorded_run import Event
from vllm_safe.diagnose.xids import AFTER, explain_fault

_LOST = 79  # the Xid of a card that fell off the bus; the driver says so in words, too


@dataclass(frozen=True)
class KernelLog:
    """The messages of this boot. cards: as record/card_usage.py lists them. now: Unix time. whole: all of them could be read."""

    events: tuple[Event, ...] = ()
    cards: tuple[Mapping[str, Any], ...] = ()
    now: float = 0.0
    whole: bool = True


def check_kernel_log(log: KernelLog) -> Iterator[Finding]:
    """Yield one finding for each sort of message; one that says so if there is none."""
    gone = {event.data.get("pci") for event in log.events if event.data.get("xid") == _LOST}
    told = [event for event in log.events if event.data.get("kind") != "lost" or event.data.get("pci") not in gone]
    found = [finding for event in told if (finding := _found(event, log))]
    yield from found
    if not log.whole:
        what = "the kernel's messages about the GPUs in this boot could not be read"
        yield warned(what, "Run it as root, and not in a container. Where the journal is gone: dmesg | grep -e NVRM -e Xid")
    elif not found:
        yield passed("since boot, the kernel has logged no Xid, no lost GPU and no error of a GPU's link")


def _found(event: Event, log: KernelLog) -> Finding | None:
    meaning = explain_fault(event.data)
    if meaning is None or meaning.of == AFTER:
        return None
    what, todo = meaning.what, meaning.todo
    if event.data.get("kind") == "link" and event.data.get("severity") == "correctable":
        what, todo = (
            "the PCIe link of its slot had errors, which were corrected",
            "If they are many: check the riser, its cable and its power.",
        )
    details = [f"Xid {event.data['xid']}"] if "xid" in event.data else []
    details += [f"{event.data['times']} times"] if event.data.get("times", 1) > 1 else []
    details += [f"{format_span(max(0.0, log.now - event.time))} ago"]
    return warned(f"{_card(str(event.data.get('pci', '')), log.cards)}: {what} ({', '.join(details)})", todo)


def _card(pci: str, cards: Sequence[Mapping[str, Any]]) -> str:
    index = next((number for number, card in enumerate(cards) if pci and str(card["pci"]).startswith(pci)), None)
    if index is not None:
        return f"GPU {index} ({pci})"
    return f"the GPU at {pci}" if pci else "the GPUs"
