"""What one look at the machine tells, as watch.py reads it and blame.py and decide.py judge it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

SCARCE = 0.1  # of RAM: with more available, who waits for memory waits for reasons of its own (a limit, programs that start)


class Usage(NamedTuple):
    """What one model has done so far. Counts grow for ever; watch.py has where they come from."""

    moved: int  # pages swapped in, read, written, or gained
    held: int = 0  # bytes of RAM now


class Reading(NamedTuple):
    """One look at the machine. `stalls`: seconds stalled so far, by "system.slice memory full" and the like."""

    now: float  # seconds of a monotonic clock
    stalls: Mapping[str, float]
    models: Mapping[str, Usage] = {}  # by unit
    others: int = 0  # pages moved by the OS's slices and by downloads
    ram: int = 0  # bytes, of the machine
    available: int = 0  # bytes
    swap_free: int = 0  # bytes
    certain: bool = True  # whether it is enough to kill by: stalls that are only estimated are not, unless RAM and swap are nearly gone

    @property
    def scarce(self) -> bool:
        """Whether so little RAM is available that the machine itself is short of it."""
        return self.available < SCARCE * self.ram
