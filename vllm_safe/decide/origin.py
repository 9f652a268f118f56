"""Where a value came from, so that `vllm-safe show` can say it and an error can point at it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm_safe.config.settings import Config


@dataclass(frozen=True)
class Origin:
    """`source` is "default", "profile NAME", "FILE:LINE", or the fact of this machine that decided; `note` says how, or is ""."""

    source: str
    note: str = ""

    def __str__(self) -> str:
        return f"{self.source} ({self.note})" if self.note else self.source


@dataclass(frozen=True)
class Sourced:
    """A value of any kind, and where it came from."""

    value: Any
    origin: Origin


def origin_of(config: Config, *paths: str) -> Origin:
    """The place in the file of the first of the dotted `paths` that the file sets, or "default"."""
    for path in paths:
        if position := config.positions.get(path):
            return Origin(str(position))
    return Origin("default")
