"""One reading of the machine, as pressure_watch.py takes it, and blame.py and guard_decision.py use it."""

from __future__ import annotations

from collections.abc import Mapping

from vllm_safe.common.named_tuples import NamedTuple

SCARCE = 0.1  # share of RAM: with more available, a stall on memory has other reasons (a limit, programs that start)


class Usage(NamedTuple):
    """The usage of one model. Counters only grow; pressure_watch.py says where they come from."""

    moved: int  # pages swapped in, read, written, or gained
    held: int = 0  # bytes of RAM now


class Reading(NamedTuple):
    """One reading of the machine. stalls: seconds stalled so far, by keys such as "system.slice memory full"."""

    now: float  # seconds of a monotonic clock
    stalls: Mapping[str, float]
    models: Mapping[str, Usage] = {}  # by unit
    others: int = 0  # pages moved by the slices of the operating system and by downloads
    ram: int = 0  # bytes, of the machine
    available: int = 0  # bytes
    swap_free: int = 0  # bytes
    certain: bool = True  # whether it justifies a kill: estimated stalls do not, unless RAM and swap are nearly used up

    @property
    def scarce(self) -> bool:
        """Whether the machine itself is short of RAM."""
        return self.available < SCARCE * self.ram
