"""The GPUs that CUDA_VISIBLE_DEVICES names."""

from __future__ import annotations

from itertools import takewhile


def visible_names(variable: str | None) -> tuple[str, ...] | None:
    """Return the GPUs that a value of CUDA_VISIBLE_DEVICES names, by number or UUID; None if it is not set: all are visible.

    CUDA ignores an invalid name and all names after it.
    """
    if variable is None:
        return None
    names = [name.strip() for name in variable.split(",")]
    return tuple(takewhile(lambda name: name.isdecimal() or name.startswith(("GPU-", "MIG-")), names))


def visible_numbers(variable: str | None) -> tuple[int, ...] | None:
    """Return the numbers of the GPUs that a value of CUDA_VISIBLE_DEVICES names; None if it is not set or names one by its UUID."""
    names = visible_names(variable)
    return tuple(map(int, names)) if names is not None and all(name.isdecimal() for name in names) else None
