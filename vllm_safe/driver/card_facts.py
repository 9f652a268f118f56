"""Facts about each NVIDIA card: the answers of NVML (card_program.py asks), and its PCIe link, which the kernel shows without a driver."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from enum import IntFlag
from pathlib import Path
from typing import Any

from vllm_safe.common.kernfs import read_kernel_file, read_lanes

_NVIDIA, _DISPLAY = "0x10de", "0x03"  # PCI vendor ID, and PCI class of display controllers
WIDE_LINK = 4  # lanes: the least that a slot or an M.2 adapter has; a riser has one
_UNIT = re.compile(r"^0::/(?!user\.slice)(?:[^/\n]+\.slice/)*([^/\n]+\.(?:service|scope))", re.MULTILINE)


class Slowdown(IntFlag):
    """Why a card runs below its clocks (nvml.h, nvmlClocksEventReasons), as far as it is a fault: not idle, not its power limit."""

    HARDWARE = 0x08
    HEAT = 0x20
    HEAT_HARDWARE = 0x40
    POWER_BRAKE = 0x80  # the power supply or the slot asks for it


@dataclass(frozen=True)
class CardProcess:
    """A process that uses a card. memory: bytes; 0 where the driver does not say.

    unit: its systemd unit; "" in a user's session, and where the process is not seen.
    """

    pid: int
    memory: int = 0
    program: str = ""
    unit: str = ""


@dataclass(frozen=True)
class NvmlCard:
    """A card of the driver. `capability`: its CUDA compute capability; (0, 0) if it does not respond. None: it has no such thing."""

    name: str
    capability: tuple[int, int]
    uuid: str = ""
    pci: str = ""  # its address
    memory: int = 0  # bytes
    reserved: int = 0  # bytes that the driver keeps for itself: CUDA does not see them
    used: int = 0  # bytes, without what the driver reserves
    bar1: int = 0  # bytes of the card's memory that others on the bus can reach at once
    processes: tuple[CardProcess, ...] = ()
    persistence: bool | None = None
    display: bool | None = None  # a screen is lit by it
    ecc: bool | None = None
    ecc_after_reboot: bool | None = None
    uncorrected: int = 0  # errors of its memory since the driver was loaded
    replaced: int = 0  # pages or rows of its memory, for good
    replacement_pending: bool = False  # until the next reset
    spares_exhausted: bool = False
    power_limit: int | None = None  # mW
    power_default: int | None = None  # mW
    power_least: int | None = None  # mW: the limits that it accepts
    power_most: int | None = None  # mW
    temperature: int | None = None  # °C
    slowdown_temperature: int | None = None  # °C
    slowed_by: int = 0  # nvmlClocksEventReasons


@dataclass(frozen=True)
class CardPair:
    """Two cards by their numbers. `access`: nvmlGpuP2PStatus_t for reading each other's memory, 0 if they can; None: not known."""

    first: int
    second: int
    access: int | None
    nvlink: bool = False


@dataclass(frozen=True)
class PciCard:
    """An NVIDIA display controller on the PCI bus. `driver`: the kernel driver to which it is bound, or "".

    Lanes of its link: now, and at most by the card, and by the slot, which is the end of the link above it; 0 where that is not known.
    """

    address: str
    driver: str = ""
    lanes: int = 0
    card_lanes: int = 0
    slot_lanes: int = 0
    translated: bool = False  # the IOMMU translates what it transfers


def parse_card(answer: dict[str, Any], root: Path) -> NvmlCard:
    """Return one card of the program's answer, with the names of the processes that use it. Raises TypeError or ValueError."""
    major, minor = answer.pop("capability")
    processes = tuple(_process(int(pid), int(memory), root) for pid, memory in answer.pop("processes", ()))
    return NvmlCard(capability=(major, minor), processes=processes, **answer)


def _process(pid: int, memory: int, root: Path) -> CardProcess:
    unit = _UNIT.search(read_kernel_file(str(root / f"proc/{pid}/cgroup")))
    return CardProcess(pid, memory, read_kernel_file(str(root / f"proc/{pid}/comm")).strip(), unit[1] if unit else "")


def read_pci_bus(root: Path) -> tuple[PciCard, ...]:
    """Read the NVIDIA cards, whatever driver they are bound to."""
    cards = []
    for device in sorted((root / "sys/bus/pci/devices").glob("*")):
        if _read(device / "vendor") != _NVIDIA or not _read(device / "class").startswith(_DISPLAY):
            continue
        driver = ""
        with suppress(OSError):
            driver = (device / "driver").readlink().name
        slot = device.resolve().parent
        cards.append(
            PciCard(
                device.name,
                driver,
                lanes=read_lanes(f"{device}/current_link_width"),
                card_lanes=read_lanes(f"{device}/max_link_width"),
                slot_lanes=read_lanes(f"{slot}/max_link_width"),
                translated=_read(device / "iommu_group/type").startswith("DMA"),
            )
        )
    return tuple(cards)


def _read(file: Path) -> str:
    return read_kernel_file(str(file)).strip()
