"""Pressure stall information (PSI) of the whole machine."""

from __future__ import annotations

import re
from pathlib import Path


def memory_pressure(root: Path = Path("/")) -> float | None:
    """The share of the last ten seconds in which something waited for memory; None where the kernel does not say."""
    try:
        text = (root / "proc/pressure/memory").read_text()
    except OSError:  # without CONFIG_PSI, or with psi=0
        return None
    found = re.search(r"^some .*\bavg10=([\d.]+)", text, re.MULTILINE)
    return float(found[1]) / 100 if found else None
