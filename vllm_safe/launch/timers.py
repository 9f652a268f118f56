"""Timers by name, and the form of a time. Pure: the clock and the time zone are those of the caller."""

from __future__ import annotations

import math
from collections.abc import Callable

TimeOfDay = Callable[[float], str]  # from Unix time, in the time zone of the machine: "12:04:31"


class Timers(dict[str, float]):
    """Times of the caller's clock, by name. `timers["look"] = now` sets a timer, `del` and `clear` remove timers."""

    @property
    def due(self) -> float:
        """The time of the next timer; math.inf if there is none."""
        return min(self.values(), default=math.inf)

    def fires(self, name: str, now: float, every: float) -> bool:
        """Return whether a timer is due, and if so set it to `every` seconds from now. A timer that was never set never fires."""
        if now < self.get(name, math.inf):
            return False
        self[name] = now + every
        return True
