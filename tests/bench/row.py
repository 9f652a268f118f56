"""One line of the table that `make bench` prints."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """`measured` against `goal`, both in `unit`; `beside` says what it was compared with, and its own figures."""

    what: str
    measured: float
    goal: float
    unit: str
    beside: str

    @property
    def met(self) -> bool:
        """Every goal here is an upper bound."""
        return self.measured <= self.goal

    def cells(self) -> tuple[str, ...]:
        """The line, for a table."""
        return (
            self.what,
            f"{self.measured:.2f} {self.unit}",
            f"<= {self.goal:g} {self.unit}",
            "met" if self.met else "MISSED",
            self.beside,
        )
