"""Parsing and formatting of sizes and time spans as people write them."""

from __future__ import annotations

import re
from typing import NamedTuple

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40

# As in systemd.resource-control(5), K, M, G and T are powers of 1024. "GB" is read the same way: people who write "128GB" mean the
# number that free -h shows.
_UNITS = {"": 1, "B": 1, "K": KIB, "M": MIB, "G": GIB, "T": TIB}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(?:([KMGT])(?:i?B)?|B)?\s*", re.IGNORECASE)
_PERCENT = re.compile(r"\s*(\d+(?:\.\d+)?)\s*%\s*")
_SPAN = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(s|sec|m|min|h|d)?\s*", re.IGNORECASE)
_SECONDS = {"s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}


class Amount(NamedTuple):
    """A number of bytes, or a percentage of a total that is known only where the amount is used."""

    value: float
    is_percent: bool = False

    def of(self, total: int) -> int:
        """Return the amount in bytes; a percentage is of `total` bytes."""
        return int(total * self.value / 100) if self.is_percent else int(self.value)

    def __str__(self) -> str:
        return f"{self.value:g}%" if self.is_percent else format_exact(int(self.value))


def parse_size(text: str) -> int:
    """Parse "128G", "1.5 GiB", "512MB" or a plain number of bytes. Return bytes. Raises ValueError."""
    if not (match := _SIZE.fullmatch(text)):
        raise ValueError(text)
    return int(float(match[1]) * _UNITS[(match[2] or "").upper()])


def parse_amount(text: str) -> Amount:
    """Parse a size, or a percentage such as "90%". Raises ValueError."""
    if match := _PERCENT.fullmatch(text):
        return Amount(float(match[1]), is_percent=True)
    return Amount(parse_size(text))


def parse_span(text: str) -> float:
    """Parse "90", "90s", "15min" or "2h". Return seconds. Raises ValueError."""
    if not (match := _SPAN.fullmatch(text)):
        raise ValueError(text)
    return float(match[1]) * _SECONDS[(match[2] or "s").lower()]


def format_size(size: int) -> str:
    """Format a size for people: up to three significant figures and a binary unit, as free -h prints it, such as "11.9 GiB"."""
    for unit, name in ((TIB, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if abs(size) >= unit:
            value = size / unit
            return f"{value:.{0 if value >= 99.95 else 1}f} {name}"
    return f"{size} B"


def format_exact(size: int) -> str:
    """Format bytes as the shortest text that parse_size reads back as the same number: "128G", "1536M", "14745"."""
    for unit, letter in ((TIB, "T"), (GIB, "G"), (MIB, "M"), (KIB, "K")):
        if size and size % unit == 0:
            return f"{size // unit}{letter}"
    return str(size)


def format_exact_span(seconds: float) -> str:
    """Format seconds as the shortest text that parse_span reads back as the same number: "4h", "15min", "90s"."""
    for unit, letter in ((3600, "h"), (60, "min")):
        if seconds and seconds % unit == 0:
            return f"{int(seconds // unit)}{letter}"
    return f"{seconds:g}s"


def format_span(seconds: float) -> str:
    """Format seconds for people, with the two largest units, rounded down: "45 s", "3 min 20 s", "1 h 5 min", "2 d 3 h"."""
    left = int(seconds)
    parts = []
    for unit, name in ((86400, "d"), (3600, "h"), (60, "min"), (1, "s")):
        count, left = divmod(left, unit)
        parts.append((count, name))
    while len(parts) > 1 and not parts[0][0]:
        parts.pop(0)
    return " ".join(f"{count} {name}" for count, name in parts[:2] if count) or "0 s"
