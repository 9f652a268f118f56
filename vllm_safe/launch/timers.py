"""Moments to come, by name: a dict of times of the caller's clock that knows which are over."""

from __future__ import annotations

import math


class Timers(dict[str, float]):
    """`timers["look"] = now` sets one, `del` and `clear` forget."""

    @property
    def due(self) -> float:
        """The next moment; math.inf if there is none."""
        return min(self.values(), default=math.inf)

    def fires(self, name: str, now: float, every: float) -> bool:
        """Whether its moment has come; then the next is `every` seconds from now. One that was never set never fires."""
        if now < self.get(name, math.inf):
            return False
        self[name] = now + every
        return True
