"""The origin of a value, for `vllm-safe show` and for error messages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vllm_safe.config.profiles import Profile
from vllm_safe.config.settings import Config


@dataclass(frozen=True)
class Origin:
    """The origin of a value.

    source: "default", "profile NAME", "FILE:LINE", or the fact about this machine that decided. note: how the value was derived, or "".
    """

    source: str
    note: str = ""

    def __str__(self) -> str:
        return f"{self.source} ({self.note})" if self.note else self.source


@dataclass(frozen=True)
class Sourced:
    """A value of any type, and its origin."""

    value: Any
    origin: Origin


def origin_of(config: Config, *paths: str) -> Origin:
    """Return the position in the file of the first of the dotted `paths` that the file sets, or "default"."""
    for path in paths:
        if position := config.positions.get(path):
            return Origin(str(position))
    return Origin("default")


def profile_origin(profile: Profile) -> Origin:
    """Return the origin of a value that a profile sets."""
    return Origin(f"profile {profile.name}")
