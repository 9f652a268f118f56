"""Aligned columns for a person; the same rows go to --json for a program."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def align_columns(rows: Iterable[Sequence[str]], *, indent: str = "  ") -> list[str]:
    """Lines in which each column but the last is padded to its longest cell of at most 60 characters."""
    table = [list(row) for row in rows]
    if not table:
        return []
    widths = [min(60, max(len(cell) for cell in column)) for column in zip(*table, strict=True)]
    padded = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in table)
    return [f"{indent}{line}".rstrip() for line in padded]
