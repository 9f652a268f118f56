"""Current values of the kernel tunables in /sys that determine how a model swaps."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

LRU_GEN = "/sys/kernel/mm/lru_gen/enabled"  # a bit mask in hexadecimal; the lowest bit turns the feature on


def read_tunables(root: Path = Path("/")) -> dict[str, str]:
    """Read the current value of each tunable, by path.

    A tunable is left out if this kernel does not have it, or if it cannot be written here, as in a container's read-only /sys.
    """
    found = {}
    for path in (LRU_GEN,):
        file = root / path.lstrip("/")
        with suppress(OSError):
            if not os.statvfs(file).f_flag & os.ST_RDONLY:
                found[path] = file.read_text().strip()
    return found
