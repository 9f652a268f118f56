"""Text that others wrote, for a terminal. On its own: the guard, locked in memory, has no use for the errors of commands."""

from __future__ import annotations


def printable(text: str) -> str:
    """A text without what would steer a terminal: models, servers and hubs write into what root reads. Lines stay lines."""
    return "".join(char if char.isprintable() or char in "\n\t" else "?" for char in text)
