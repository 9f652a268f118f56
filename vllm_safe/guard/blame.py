"""The decision which model causes the pressure: the one that moves most pages meanwhile, if that is a fair share of all. Pure.

A frozen model moves no pages. Hence the blame stays with it while it is frozen and for a few seconds after that: otherwise another model
would be throttled for the little that it does meanwhile.
"""

from __future__ import annotations

from vllm_safe.guard.readings import Reading
from vllm_safe.guard.window import Window

SPAN = 5.0  # seconds over which the movement of pages is compared
AFTER_THAW = 3.0  # seconds for which the blame stays with a thawed model, until its page movement shows again
FEWEST_PAGES = 16.0  # pages per second; a model that moves fewer causes no pressure
FAIR_PART = 0.2  # share of all pages that models, operating system and downloads move
LARGE = 0.5  # share of RAM
_SHORTEST = 0.25  # seconds: a shorter comparison allows no statement about a second


class Blame:
    """The page movement of the last seconds, and the model that is blamed for it."""

    def __init__(self) -> None:
        self._moves = Window(SPAN)
        self._frozen, self._until = "", 0.0  # the unit with which the blame stays, and until when

    def add(self, reading: Reading) -> None:
        """Add a reading."""
        if self._frozen not in reading.models:  # another run of the model begins without blame
            self._frozen = ""
        self._moves.add(reading.now, _moves(reading))

    def clear(self) -> None:
        """Begin a new comparison."""
        self._moves.clear()

    def forgive(self) -> None:
        """Lift the blame from a frozen model."""
        self._frozen = ""

    def froze(self, unit: str) -> None:
        """Keep the blame with this unit while it is frozen."""
        self._frozen, self._until = unit, float("inf")

    def thawed(self, now: float) -> None:
        """Keep the blame for a few seconds more, and begin a new comparison: from now on all models run."""
        self._moves.clear()
        self._until = now + AFTER_THAW

    def cause(self, reading: Reading) -> str | None:
        """Return the unit of the model that moves most pages, if it moves enough to matter, else None."""
        if self._frozen and reading.now < self._until:
            return self._frozen
        moved = self._moves.grown(_moves(reading))
        most = max(reading.models, key=lambda unit: moved.get(unit, 0.0), default="")
        total = sum(moved.get(unit, 0.0) for unit in ("", *reading.models))
        pages = moved.get(most, 0.0) if most else 0.0
        enough = pages >= max(FEWEST_PAGES * self._moves.length(reading.now), FAIR_PART * total)
        return most if pages > 0 and enough else None

    def rate(self, unit: str, reading: Reading) -> float:
        """Return the pages per second that a model moves."""
        return self._moves.grown(_moves(reading)).get(unit, 0.0) / max(self._moves.length(reading.now), _SHORTEST)


def largest_model(reading: Reading) -> str | None:
    """Return the unit that holds most of the RAM, for the case that no model moves pages: the operating system lacks this RAM.

    Return None while RAM is available: the operating system is then stalled for other reasons, such as a container at its own limit.
    """
    unit = max(reading.models, key=lambda name: reading.models[name].held, default="")
    return unit if unit and reading.scarce and reading.models[unit].held >= LARGE * reading.ram else None


def _moves(reading: Reading) -> dict[str, float]:
    """Return the pages moved by unit; "" stands for everything that is not a model."""
    return {"": reading.others, **{unit: usage.moved for unit, usage in reading.models.items()}}
