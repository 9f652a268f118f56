"""A line of the table that `make bench` prints."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """A figure: `measured` compared with `goal`, both in `unit`. `beside` names what it was compared with, and its figures."""

    what: str
    measured: float
    goal: float
    unit: str
    beside: str

    @property
    def met(self) -> bool:
        """Whether the goal is met; every goal is an upper bound."""
        return self.measured <= self.goal

    def cells(self) -> tuple[str, ...]:
        """Return the cells of the line."""
        return (
            self.what,
            f"{self.measured:.2f} {self.unit}",
            f"<= {self.goal:g} {self.unit}",
            "met" if self.met else "MISSED",
            self.beside,
        )
