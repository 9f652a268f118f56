"""Text that others wrote, for a terminal. On its own: the guard, locked in memory, has no use for the errors of commands."""

from __future__ import annotations


def printable(text: str) -> str:
    """Replace each character that could control a terminal by "?". Newlines and tabs stay."""
    return "".join(char if char.isprintable() or char in "\n\t" else "?" for char in text)
