"""Aligned columns for people. The same rows go to --json for programs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def align_columns(rows: Iterable[Sequence[str]], *, indent: str = "  ") -> list[str]:
    """Format rows as lines. Each column is padded to its longest cell, but to 60 characters at most."""
    table = [list(row) for row in rows]
    if not table:
        return []
    widths = [min(60, max(len(cell) for cell in column)) for column in zip(*table, strict=True)]
    padded = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in table)
    return [f"{indent}{line}".rstrip() for line in padded]
