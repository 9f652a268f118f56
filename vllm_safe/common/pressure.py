"""Pressure stall information (PSI) of the whole machine."""

from __future__ import annotations

import re
from pathlib import Path


def memory_pressure(root: Path = Path("/")) -> float | None:
    """Return the share (0 to 1) of the last ten seconds in which some task waited for memory; None without PSI in the kernel."""
    found = _some(root, "avg10")
    return float(found) / 100 if found else None


def memory_stalled(root: Path = Path("/")) -> int | None:
    """Return the microseconds since boot in which some task waited for memory or reclaimed it; None without PSI in the kernel."""
    found = _some(root, "total")
    return int(found) if found else None


def _some(root: Path, what: str) -> str | None:
    try:
        text = (root / "proc/pressure/memory").read_text()
    except OSError:  # without CONFIG_PSI, or with psi=0
        return None
    found = re.search(rf"^some .*\b{what}=([\d.]+)", text, re.MULTILINE)
    return found[1] if found else None
