"""What NVIDIA's Xid numbers mean: its catalogue (docs.nvidia.com/deploy/xid-errors, r580), in a sentence each, and what to do."""

from __future__ import annotations

from typing import NamedTuple

WHERE = "see https://docs.nvidia.com/deploy/xid-errors/analyzing-xid-catalog.html"

CARD = "card"  # the card, its memory, its link or its firmware has failed, whoever used it
WEAR = "wear"  # the card's memory wears: corrected, and seldom what ended anything
PROGRAM = "program"  # what a process had the card do; a bug of it or of the driver, seldom the card
AFTER = "after"  # follows from another fault, or from a process that was killed: proves nothing
DRIVER = "driver"  # the driver's own trouble, which no process need notice
UNKNOWN = "unknown"


class Xid(NamedTuple):
    """One number. what: goes on after "card 1 (NAME, 0000:01:00): "; todo: one line."""

    of: str
    what: str
    todo: str


LOST = Xid(
    CARD,
    "it has fallen off the bus, and does not answer any more",
    "Waiting, starting it again or a reset cannot help: power the machine off and on. If it comes again: power supply, riser, heat.",
)
_RESET = (
    "Starting it again may not help before the card is reset: nvidia-smi -r with nothing on it, or a reboot. If it comes again, the card."
)
_MEMORY = (
    "nvidia-smi -q -d ECC,ROW_REMAPPER has the counts. Reset the card (nvidia-smi -r with nothing on it) or reboot; "
    "if it comes again, have it replaced."
)
_GSP = (
    "Reboot; starting it again seldom helps before that. A newer driver may mend it; with NVIDIA's proprietary modules "
    "`options nvidia NVreg_EnableGpuFirmware=0` in a file of /etc/modprobe.d does without that firmware."
)
_NVLINK = "nvidia-smi nvlink --errorcounters shows which link. Reset the cards or reboot; reseat the bridge or the cards if it comes again."
_BUG = "It is seldom the card. A newer engine.version or driver may mend it; the kernel's line belongs in a report to vLLM."
_EITHER = f"{_BUG} On a riser, bad transfers do it as well."
_NOTHING = "It follows from what is beside it, and says nothing of the card."

XIDS: dict[int, Xid] = {
    8: Xid(PROGRAM, "it stopped processing what a process had given it, within the driver's time", _EITHER),
    13: Xid(PROGRAM, "a kernel of a process did what it must not (graphics engine exception: out of bounds, illegal instruction)", _BUG),
    31: Xid(PROGRAM, "a process reached for memory of the card that is not its own (MMU fault)", _BUG),
    32: Xid(PROGRAM, "the commands that it was sent were invalid or damaged (push buffer)", _EITHER),
    38: Xid(DRIVER, "the driver's firmware for context switches did not answer in time", _BUG),
    43: Xid(AFTER, "the driver has ended what a process ran on it", _NOTHING),
    45: Xid(AFTER, "the driver has cleaned up after a process that was killed, or failed before", _NOTHING),
    46: Xid(CARD, "it stopped processing, and the driver could not make it go on", _RESET),
    48: Xid(CARD, "an error of two bits of its memory, which ECC could not correct", _MEMORY),
    54: Xid(CARD, "its auxiliary power is not connected", "Power the machine off, and look at the card's power cables."),
    56: Xid(DRIVER, "an error of its display engine, which no model uses", "It says nothing of a model."),
    61: Xid(CARD, "its power management unit stopped at a breakpoint (internal micro-controller)", _RESET),
    62: Xid(CARD, "its power management unit has halted (internal micro-controller)", _RESET),
    63: Xid(WEAR, "a row of its memory had errors, and is to be replaced by a spare one at the next reset", _MEMORY),
    64: Xid(CARD, "a row of its memory had errors, and could not be replaced by a spare one", _MEMORY),
    68: Xid(PROGRAM, "its video decoder failed at what a process gave it", _BUG),
    69: Xid(PROGRAM, "a process used a class or method that it has not (graphics engine class error)", _BUG),
    74: Xid(CARD, "an error of NVLink, its link to other cards", _NVLINK),
    79: LOST,
    92: Xid(WEAR, "its memory has many errors, which ECC corrected (single bit)", _MEMORY),
    94: Xid(CARD, "an error of its memory that ECC could not correct; only the processes that used that place are lost", _MEMORY),
    95: Xid(CARD, "an error of its memory that ECC could not correct, and that may have reached every process on it", _MEMORY),
    109: Xid(PROGRAM, "what a process ran on it did not let go of it in time (context switch timeout)", _EITHER),
    110: Xid(CARD, "a security fault of its hardware", _RESET),
    119: Xid(CARD, "its firmware (GSP) did not answer the driver in time", _GSP),
    120: Xid(CARD, "its firmware (GSP) has crashed", _GSP),
    136: Xid(CARD, "NVLink, its link to other cards, could not be trained", _NVLINK),
    140: Xid(CARD, "an error of its memory that ECC could not correct and the driver could not handle", _MEMORY),
    143: Xid(CARD, "the driver could not initialise it", _RESET),
    **dict.fromkeys(range(144, 151), Xid(CARD, "an error of NVLink, its link to other cards", _NVLINK)),
    154: Xid(CARD, "the driver asks for it to be recovered", _RESET),
    155: Xid(CARD, "an error of NVLink that the driver found", _NVLINK),
    156: Xid(WEAR, "a part of it had errors, and is retired at the next reset", _MEMORY),
    157: Xid(CARD, "a part of it had errors, and could not be retired", _MEMORY),
    158: Xid(CARD, "it did not answer the driver in time, for good", _RESET),
    167: Xid(CARD, "its PCIe link did not answer in time, for good", LOST.todo),
    169: Xid(CARD, "its security processor has halted (internal micro-controller)", _RESET),
    171: Xid(CARD, "an error of its memory (DRAM) that ECC could not correct", _MEMORY),
    172: Xid(CARD, "an error of its caches (SRAM) that ECC could not correct", _MEMORY),
}

# What Xid 154 says that the driver wants, by a word of it; vLLM's processes are gone when somebody reads this.
DEMANDS = (
    ("reboot", "The driver asks for a reboot."),
    ("drain and reset", "The driver asks for a reset of the card once nothing uses it: nvidia-smi -r, or a reboot."),
    ("drain", "The driver asks that nothing talks to the card directly from others any more; a reboot does that as well."),
    ("reset", "The driver asks for a reset of the card: nvidia-smi -r with nothing on it, or a reboot."),
    ("flr", "The driver asks for a reset of the card: nvidia-smi -r with nothing on it, or a reboot."),
)


def explain_xid(number: int) -> Xid:
    """What a number means; of one that is not listed, where it is explained."""
    return XIDS.get(number, Xid(UNKNOWN, "not known here", WHERE))


def demand(action: str) -> str:
    """What the driver asks for, "" if nothing."""
    return next((text for word, text in DEMANDS if word in action.lower()), "")
