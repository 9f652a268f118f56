"""Kernel tunables below /sys that decide how a model swaps, as they are now."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

LRU_GEN = "/sys/kernel/mm/lru_gen/enabled"  # a bit mask, in hexadecimal; the lowest bit is the whole of it


def read_tunables(root: Path = Path("/")) -> dict[str, str]:
    """What each has now, by path, without those that this kernel has not, or that cannot be written here (a container's /sys)."""
    found = {}
    for path in (LRU_GEN,):
        file = root / path.lstrip("/")
        with suppress(OSError):
            if not os.statvfs(file).f_flag & os.ST_RDONLY:
                found[path] = file.read_text().strip()
    return found
