"""Timers by name: a dict of times of the caller's clock."""

from __future__ import annotations

import math


class Timers(dict[str, float]):
    """A set of timers. `timers["look"] = now` sets a timer, `del` and `clear` remove timers."""

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
