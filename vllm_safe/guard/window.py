"""Totals over a recent span of time."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

_SAMPLES = 24  # in one span


class Window:
    """Totals that only grow, over the last `span` seconds. It never overestimates, so that no step is taken too early."""

    def __init__(self, span: float) -> None:
        self.span = span
        self._samples = deque[tuple[float, dict[str, float]]](maxlen=2 * _SAMPLES)

    def add(self, now: float, totals: Mapping[str, float]) -> None:
        """Add the totals at a time in seconds."""
        while self._samples and self._samples[0][0] < now - self.span:
            self._samples.popleft()
        if not self._samples or now - self._samples[-1][0] >= self.span / _SAMPLES:
            self._samples.append((now, dict(totals)))

    def grown(self, totals: Mapping[str, float]) -> dict[str, float]:
        """Return the growth of each total since the oldest sample. Totals without an oldest sample are left out."""
        first = self._samples[0][1] if self._samples else {}
        return {key: total - first[key] for key, total in totals.items() if key in first}

    def length(self, now: float) -> float:
        """Return the seconds since the oldest sample."""
        return now - self._samples[0][0] if self._samples else 0.0

    def clear(self) -> None:
        """Remove all samples."""
        self._samples.clear()
