"""Who keeps the OS waiting: the model that moves most pages meanwhile, if that is a fair part of all. Pure, as decide.py.

A model that is frozen moves nothing, so while it is, and until it could show again what it does, the blame stays with it: another would
be held back for having done the little that was done without it.
"""

from __future__ import annotations

from vllm_safe.guard.readings import Reading
from vllm_safe.guard.window import Window

SPAN = 5.0  # seconds over which the movement of pages is compared
AFTER_THAW = 3.0  # seconds in which a model that was frozen shows again what it does
FEWEST_PAGES = 16.0  # a second; who moves less keeps nobody waiting
FAIR_PART = 0.2  # of all pages that models, OS and downloads move
LARGE = 0.5  # of RAM
_SHORTEST = 0.25  # seconds: what was compared over less says nothing of a second


class Blame:
    """Pages of the last seconds."""

    def __init__(self) -> None:
        self._moves = Window(SPAN)
        self._frozen, self._until = "", 0.0  # whose blame stays, and how long

    def add(self, reading: Reading) -> None:
        """One more look."""
        if self._frozen not in reading.models:  # another run of it begins without blame
            self._frozen = ""
        self._moves.add(reading.now, _moves(reading))

    def clear(self) -> None:
        """Compare from now on."""
        self._moves.clear()

    def forgive(self) -> None:
        """Nobody's blame stays."""
        self._frozen = ""

    def froze(self, unit: str) -> None:
        """The blame stays with this one."""
        self._frozen, self._until = unit, float("inf")

    def thawed(self, now: float) -> None:
        """The same for a few seconds more; all that is compared from then on is what everybody does with everybody running."""
        self._moves.clear()
        self._until = now + AFTER_THAW

    def cause(self, reading: Reading) -> str | None:
        """The model that moves most pages, if it does enough to matter."""
        if self._frozen and reading.now < self._until:
            return self._frozen
        moved = self._moves.grown(_moves(reading))
        most = max(reading.models, key=lambda unit: moved.get(unit, 0.0), default="")
        total = sum(moved.get(unit, 0.0) for unit in ("", *reading.models))
        pages = moved.get(most, 0.0) if most else 0.0
        enough = pages >= max(FEWEST_PAGES * self._moves.length(reading.now), FAIR_PART * total)
        return most if pages > 0 and enough else None

    def rate(self, unit: str, reading: Reading) -> float:
        """Pages that a model moves a second."""
        return self._moves.grown(_moves(reading)).get(unit, 0.0) / max(self._moves.length(reading.now), _SHORTEST)


def largest_model(reading: Reading) -> str | None:
    """Who holds most of the RAM: where nobody moves anything, that is what the OS has not.

    Nobody while there is RAM to be had: then the OS waits for reasons of its own, a container at its own limit for example.
    """
    unit = max(reading.models, key=lambda name: reading.models[name].held, default="")
    return unit if unit and reading.scarce and reading.models[unit].held >= LARGE * reading.ram else None


def _moves(reading: Reading) -> dict[str, float]:
    """Pages moved by unit; "" is all that is no model."""
    return {"": reading.others, **{unit: usage.moved for unit, usage in reading.models.items()}}
