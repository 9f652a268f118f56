"""NVIDIA GPUs as the kernel lists them, and which of them a model uses: without NVML, which may hang, be missing, or cost 10 MB."""

from __future__ import annotations

import _thread
import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from vllm_safe.common.kernfs import read_kernel_file, read_lanes
from vllm_safe.contract.recorded_run import Gpu
from vllm_safe.contract.state_file import CardUsage
from vllm_safe.driver.visible_devices import visible_numbers

_PATIENCE = 2.0  # seconds for the driver to return the names
_MEANS, _TOPS = ("busy", "power", "heat", "capped", "braked"), ("temperature", "generation")
_GROWN = 64 << 20  # bytes since the run began: CUDA alone uses 150 MiB and more on each GPU of a process


def read_pci_cards(root: str) -> list[dict[str, Any]]:
    """Return the PCI address, name, lanes of the link (0: unknown) and upstream bridges of each GPU.

    They are ordered by address, which is the order of nvidia-smi.
    """
    folder = f"{root}/proc/driver/nvidia/gpus"
    try:
        found = sorted(os.listdir(folder))
    except OSError:
        return []
    names = _names([f"{folder}/{pci}/information" for pci in found])
    return [
        {
            "pci": pci,
            "name": name,
            "lanes": read_lanes(f"{root}/sys/bus/pci/devices/{pci}/current_link_width"),
            "bridges": _bridges(root, pci),
        }
        for pci, name in zip(found, names, strict=True)
    ]


def _names(paths: list[str]) -> list[str]:
    """Return the product name of each GPU, "" if the driver does not answer: a separate thread reads it, since a hung GPU may block it."""
    names = [""] * len(paths)
    asking = _thread.allocate_lock()

    def ask() -> None:
        try:
            for number, path in enumerate(paths):
                lines = read_kernel_file(path).splitlines()
                names[number] = next((line.partition(":")[2].strip() for line in lines if line.startswith("Model:")), "")
        finally:
            asking.release()

    asking.acquire()
    _thread.start_new_thread(ask, ())
    asking.acquire(timeout=_PATIENCE)
    return list(names)


def _bridges(root: str, pci: str) -> list[str]:
    """Return the bridges from the root port down: /sys/devices/pci0000:00/0000:00:02.0/0000:01:00.0 is a GPU behind one bridge."""
    parts = os.path.realpath(f"{root}/sys/bus/pci/devices/{pci}").split("/")
    return [part for part in parts[:-1] if part.count(":") == 2 and "." in part]


def visible_cards(env: Mapping[str, str], names: Collection[str]) -> frozenset[int] | None:
    """Return the GPUs that a server with this environment sees, in the numbering of nvidia-smi; None: all of them, or unknown.

    names: the names of all GPUs. If they differ, CUDA's default order is the fastest first.
    """
    numbers = visible_numbers(env.get("CUDA_VISIBLE_DEVICES"))
    ordered = len(set(names)) == 1 or env.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID"
    return frozenset(numbers) if numbers is not None and ordered else None


class CardReadings:
    """The readings of the GPUs since the last sample, each second one."""

    def __init__(self) -> None:
        self._readings: list[tuple[Gpu, ...]] = []

    def add(self, gpus: tuple[Gpu, ...]) -> None:
        """Take a reading, () if there is none."""
        if gpus:
            self._readings.append(gpus)

    def take(self) -> tuple[Gpu, ...]:
        """Return the last reading, with the mean of shares and watts since the last call, and the highest temperature and generation."""
        readings, self._readings = self._readings, []
        if not readings:
            return ()
        last = readings[-1]
        return tuple(map(_merged, last, zip(*(one for one in readings if len(one) == len(last)), strict=True)))


def _merged(last: Gpu, readings: Sequence[Gpu]) -> Gpu:
    if not last.total:  # it no longer answers
        return last

    def known(name: str) -> list[float]:
        return [value for gpu in readings if (value := getattr(gpu, name)) is not None]

    means = {name: sum(values) / len(values) for name in _MEANS if (values := known(name))}
    tops = {name: max(values) for name in _TOPS if (values := known(name))}
    merged: dict[str, Any] = {**means, **tops}
    return last._replace(**merged)


class CardsInUse:
    """The GPU usage that the recorder reports to the main process of one run. seen: the GPUs that the model sees; None: all."""

    def __init__(self, seen: frozenset[int] | None) -> None:
        self._seen = seen
        self._least: tuple[int, ...] = ()  # the lowest number of bytes in use on each GPU so far

    def look(self, gpus: Sequence[Gpu]) -> CardUsage:
        """Take a reading of the GPUs and return their usage. A GPU counts as the model's once more of its memory is in use than before."""
        gpus = [gpu for index, gpu in enumerate(gpus) if self._seen is None or index in self._seen]
        used = tuple(gpu.used for gpu in gpus)
        self._least = tuple(map(min, used, self._least)) if len(used) == len(self._least) else used
        busy = [gpu.busy for gpu, least in zip(gpus, self._least, strict=True) if gpu.used - least >= _GROWN]
        return CardUsage(sum(used), min(busy, default=None))
