"""Meanings of what the kernel logs about cards: a phrase and what to do for each.

NVIDIA's Xid numbers are those of its catalogue (docs.nvidia.com/deploy/xid-errors, r580).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

WHERE = "see https://docs.nvidia.com/deploy/xid-errors/analyzing-xid-catalog.html"

CARD = "card"  # the card, its memory, its link or its firmware has failed, whichever process used it
WEAR = "wear"  # the card's memory wears out: the error was corrected, and seldom ends a process
PROGRAM = "program"  # a process misused the card: a bug of the process or of the driver, seldom of the card
AFTER = "after"  # a consequence of another fault, or of a process that was killed: no evidence of a cause
DRIVER = "driver"  # an internal error of the driver, which processes need not notice
UNKNOWN = "unknown"


class Xid(NamedTuple):
    """The meaning of one number. what: a phrase that follows "card 1 (NAME, 0000:01:00): "; todo: what to do, in one line."""

    of: str
    what: str
    todo: str


LOST = Xid(
    CARD,
    "it has fallen off the bus and no longer responds",
    "Neither waiting, a restart of the model nor a reset helps: power the machine off and on. "
    "If it happens again, check the power supply, the riser and the heat.",
)
_RESET = (
    "A restart of the model may not help until the GPU is reset: nvidia-smi -r while nothing uses it, or a reboot. "
    "If it happens again, the GPU is defective."
)
_MEMORY = (
    "nvidia-smi -q -d ECC,ROW_REMAPPER shows the counts. Reset the GPU (nvidia-smi -r while nothing uses it) or reboot; "
    "if it happens again, have it replaced."
)
_GSP = (
    "Reboot; a restart of the model seldom helps before that. A newer driver may fix it; with NVIDIA's proprietary modules "
    "`options nvidia NVreg_EnableGpuFirmware=0` in a file of /etc/modprobe.d disables that firmware."
)
_NVLINK = (
    "nvidia-smi nvlink --errorcounters shows which link. Reset the GPUs or reboot; if it happens again, reseat the bridge or the GPUs."
)
_BUG = "It is seldom the GPU. A newer engine.version or driver may fix it; quote the kernel's message in a report to vLLM."
_EITHER = f"{_BUG} On a riser, corrupted transfers cause it as well."
_NOTHING = "It is a consequence of another fault, and does not indicate a fault of the GPU."

XIDS: dict[int, Xid] = {
    8: Xid(PROGRAM, "it did not finish a process's commands within the driver's time limit", _EITHER),
    13: Xid(PROGRAM, "a kernel of a process failed (graphics engine exception: out of bounds access, illegal instruction)", _BUG),
    31: Xid(PROGRAM, "a process accessed memory of the GPU that it had not mapped (MMU fault)", _BUG),
    32: Xid(PROGRAM, "it was sent invalid or corrupted commands (push buffer)", _EITHER),
    38: Xid(DRIVER, "the driver's firmware for context switches did not respond in time", _BUG),
    43: Xid(AFTER, "the driver stopped the work of a process on it", _NOTHING),
    45: Xid(AFTER, "the driver cleaned up after a process that was killed or had failed before", _NOTHING),
    46: Xid(CARD, "it stopped processing, and the driver could not recover it", _RESET),
    48: Xid(CARD, "a double-bit ECC error of its memory, which could not be corrected", _MEMORY),
    54: Xid(CARD, "its auxiliary power is not connected", "Power the machine off and check the GPU's power cables."),
    56: Xid(DRIVER, "an error of its display engine, which no model uses", "It is not related to a model."),
    61: Xid(CARD, "its power management unit stopped at a breakpoint (internal micro-controller)", _RESET),
    62: Xid(CARD, "its power management unit has halted (internal micro-controller)", _RESET),
    63: Xid(WEAR, "a row of its memory had errors, and will be remapped to a spare row at the next reset", _MEMORY),
    64: Xid(CARD, "a row of its memory had errors, and could not be remapped to a spare row", _MEMORY),
    68: Xid(PROGRAM, "its video decoder failed on the input of a process", _BUG),
    69: Xid(PROGRAM, "a process used a class or method that it does not have (graphics engine class error)", _BUG),
    74: Xid(CARD, "an error of NVLink, its link to other GPUs", _NVLINK),
    79: LOST,
    92: Xid(WEAR, "its memory has a high rate of single-bit errors, which ECC corrected", _MEMORY),
    94: Xid(CARD, "an error of its memory that ECC could not correct; only the processes that used that memory are affected", _MEMORY),
    95: Xid(CARD, "an error of its memory that ECC could not correct, and that may affect every process on it", _MEMORY),
    109: Xid(PROGRAM, "the work of a process did not release it in time (context switch timeout)", _EITHER),
    110: Xid(CARD, "a security fault of its hardware", _RESET),
    119: Xid(CARD, "its firmware (GSP) did not respond to the driver in time", _GSP),
    120: Xid(CARD, "its firmware (GSP) has crashed", _GSP),
    136: Xid(CARD, "NVLink, its link to other GPUs, could not be trained", _NVLINK),
    140: Xid(CARD, "an error of its memory that ECC could not correct and the driver could not handle", _MEMORY),
    143: Xid(CARD, "the driver could not initialise it", _RESET),
    **dict.fromkeys(range(144, 151), Xid(CARD, "an error of NVLink, its link to other GPUs", _NVLINK)),
    154: Xid(CARD, "the driver asks for a recovery of the GPU", _RESET),
    155: Xid(CARD, "an error of NVLink that the driver detected", _NVLINK),
    156: Xid(WEAR, "a part of it had errors, and is retired at the next reset", _MEMORY),
    157: Xid(CARD, "a part of it had errors, and could not be retired", _MEMORY),
    158: Xid(CARD, "it did not respond to the driver in time, and cannot recover", _RESET),
    167: Xid(CARD, "its PCIe link did not respond in time, and cannot recover", LOST.todo),
    169: Xid(CARD, "its security processor has halted (internal micro-controller)", _RESET),
    171: Xid(CARD, "an error of its memory (DRAM) that ECC could not correct", _MEMORY),
    172: Xid(CARD, "an error of its caches (SRAM) that ECC could not correct", _MEMORY),
}

# The other messages about a card, by their kind in record/card_faults.py.
OTHERS: Mapping[str, Xid] = {
    "lost": LOST,
    "init": Xid(
        CARD,
        "the driver could not initialise it",
        "Power the machine off and on. If it happens again, check the power supply, the riser and the BIOS (Above 4G Decoding); "
        "journalctl -k -g NVRM shows details.",
    ),
    "uvm": Xid(
        CARD,
        "the driver's memory manager (UVM) has failed, for every process on the machine",
        "Neither waiting nor a restart of the model helps: reboot.",
    ),
    "link": Xid(
        CARD,
        "the PCIe link of its slot has failed",
        "Power the machine off and on; then check the riser, its cable and its power, and try another slot.",
    ),
}

# The recovery that the driver asks for with Xid 154, by a word of its message. vLLM's processes have ended when a person reads the advice.
DEMANDS = (
    ("reboot", "The driver asks for a reboot."),
    ("drain and reset", "The driver asks for a reset of the GPU once nothing uses it: nvidia-smi -r, or a reboot."),
    ("drain", "The driver asks that other GPUs stop peer-to-peer transfers with this GPU; a reboot does that as well."),
    ("reset", "The driver asks for a reset of the GPU: nvidia-smi -r while nothing uses it, or a reboot."),
    ("flr", "The driver asks for a reset of the GPU: nvidia-smi -r while nothing uses it, or a reboot."),
)


def explain_xid(number: int) -> Xid:
    """Return the meaning of a number; of one that is not listed, where it is explained."""
    return XIDS.get(number, Xid(UNKNOWN, "unknown Xid", WHERE))


def explain_fault(data: Mapping[str, Any]) -> Xid | None:
    """Return the meaning of a message that record/card_faults.py parsed into `data`; None for one that is not about a card's own fault."""
    number = data.get("xid")
    return explain_xid(number) if isinstance(number, int) else OTHERS.get(str(data.get("kind")))


def demand(action: str) -> str:
    """Return the recovery that the driver asks for, or "" if it asks for none."""
    return next((text for word, text in DEMANDS if word in action.lower()), "")
