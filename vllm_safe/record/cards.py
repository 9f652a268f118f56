"""NVIDIA's cards as the kernel lists them, and which of them a model uses: without NVML, which may hang, not be there, or cost 10 MB."""

from __future__ import annotations

import _thread
import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from vllm_safe.launch.state import Cards
from vllm_safe.record.run import Gpu
from vllm_safe.record.sample import count, read_text

_PATIENCE = 2.0  # seconds for the driver to say the names
_MOST_LANES = 32  # PCI Express Base Specification, Link Status register
_GROWN = 64 << 20  # bytes since the run began: CUDA alone takes 150 MiB and more of a card that a process uses


def read_cards(root: str) -> list[dict[str, Any]]:
    """Each card: PCI address, name, lanes of its link (0: not known), bridges above it; ordered by address as nvidia-smi counts them."""
    folder = f"{root}/proc/driver/nvidia/gpus"
    try:
        found = sorted(os.listdir(folder))
    except OSError:
        return []
    names = _names([f"{folder}/{pci}/information" for pci in found])
    return [
        {"pci": pci, "name": name, "lanes": _lanes(root, pci), "bridges": _bridges(root, pci)}
        for pci, name in zip(found, names, strict=True)
    ]


def _names(paths: list[str]) -> list[str]:
    """What each is sold as, "" where the driver does not say: it is asked by a thread of its own, which a hung card may hold up."""
    names = [""] * len(paths)
    asking = _thread.allocate_lock()

    def ask() -> None:
        try:
            for number, path in enumerate(paths):
                lines = read_text(path).splitlines()
                names[number] = next((line.partition(":")[2].strip() for line in lines if line.startswith("Model:")), "")
        finally:
            asking.release()

    asking.acquire()
    _thread.start_new_thread(ask, ())
    asking.acquire(timeout=_PATIENCE)
    return list(names)


def _lanes(root: str, pci: str) -> int:
    """The width of the card's link as it was negotiated. A card that fell off the bus reads as all ones: 63 lanes."""
    width = count(read_text(f"{root}/sys/bus/pci/devices/{pci}/current_link_width"))
    return width if width is not None and width <= _MOST_LANES else 0


def _bridges(root: str, pci: str) -> list[str]:
    """From the root port down: /sys/devices/pci0000:00/0000:00:02.0/0000:01:00.0 is a card below one."""
    parts = os.path.realpath(f"{root}/sys/bus/pci/devices/{pci}").split("/")
    return [part for part in parts[:-1] if part.count(":") == 2 and "." in part]


def visible_cards(env: Mapping[str, str], names: Collection[str]) -> frozenset[int] | None:
    """The cards that a server with this environment sees, as nvidia-smi counts them; None: all of them, or not to be told.

    names: of all cards. Where they differ, CUDA's own order is the fastest first.
    """
    seen = env.get("CUDA_VISIBLE_DEVICES", "").split(",")
    if all(part.strip().isdecimal() for part in seen) and (len(set(names)) == 1 or env.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID"):
        return frozenset(map(int, seen))
    return None


class InUse:
    """What the main process is told of the cards of one run. seen: those that the model sees; None: all."""

    def __init__(self, seen: frozenset[int] | None) -> None:
        self._seen = seen
        self._least: tuple[int, ...] = ()  # bytes of each card that were in use when fewest were

    def look(self, gpus: Sequence[Gpu]) -> Cards:
        """Take what the cards say now. One whose memory in use has grown since the run began counts as the model's."""
        gpus = [gpu for index, gpu in enumerate(gpus) if self._seen is None or index in self._seen]
        used = tuple(gpu.used for gpu in gpus)
        self._least = tuple(map(min, used, self._least)) if len(used) == len(self._least) else used
        busy = [gpu.busy for gpu, least in zip(gpus, self._least, strict=True) if gpu.used - least >= _GROWN]
        return Cards(sum(used), min(busy, default=None))
