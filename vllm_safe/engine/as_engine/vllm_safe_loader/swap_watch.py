"""Whether the kernel is swapping in from the disk that a checkpoint is read from: a disk with one head then serves both in turn."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

_LEAST = 10  # pages per second that are swapped in; a hard disk swaps in some 130 when it does nothing else
_EVERY = 1.0  # seconds between two looks


class SwapWatch:
    """Counts the pages that are swapped in, if a swap area is on the disk of a file."""

    def __init__(self, file: str, proc: Path = Path("/proc"), devices: Path = Path("/sys/dev/block")) -> None:
        self._vmstat = proc / "vmstat"
        self._on_its_disk = _swaps_to_disk_of(file, proc, devices)
        self._looked_at, self._pages = 0.0, self._count() if self._on_its_disk else 0
        self._swaps_in = False

    def swaps_in(self, now: float) -> bool:
        """Return whether the kernel was swapping in during the last second or two. now: seconds of the monotonic clock."""
        if self._on_its_disk and (passed := now - self._looked_at) >= _EVERY:
            pages = self._count()
            self._swaps_in = self._looked_at > 0 and pages - self._pages >= _LEAST * passed
            self._looked_at, self._pages = now, pages
        return self._swaps_in

    def _count(self) -> int:
        with suppress(OSError):
            return int(next((line for line in self._vmstat.read_text("ascii").splitlines() if line.startswith("pswpin ")), "pswpin 0")[7:])
        return 0


def _swaps_to_disk_of(file: str, proc: Path, devices: Path) -> bool:
    try:
        own = _disk(os.stat(file).st_dev, devices)  # noqa: PTH116 - the names are vLLM's, and strings
        areas = [line.split() for line in (proc / "swaps").read_text("utf-8").splitlines()[1:]]
    except OSError:
        return False
    found = False
    for path, kind, *_ in areas:
        with suppress(OSError):  # one in a folder that user vllm may not search
            status = Path(path.replace("\\040", " ")).stat()
            found |= _disk(status.st_rdev if kind == "partition" else status.st_dev, devices) == own
    return found


def _disk(device: int, devices: Path) -> str:
    """Return the name of the disk that a device is, or is a partition of; its numbers if the kernel has none, as for btrfs."""
    link = devices / f"{os.major(device)}:{os.minor(device)}"
    if not link.exists():
        return link.name
    found = link.resolve()
    return (found.parent if (found / "partition").exists() else found).name
