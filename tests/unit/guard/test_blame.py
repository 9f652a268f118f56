"""Blame: among several models that move pages, and while one of them is frozen."""

from __future__ import annotations

import pytest

from vllm_safe.guard.blame import AFTER_THAW, Blame, largest_model
from vllm_safe.guard.readings import Reading, Usage

ONE, TWO = "vllm@one.service", "vllm@two.service"


def reading(now: float, one: float, two: float, others: float = 0) -> Reading:
    """Return a reading with these rates in pages per second since the beginning."""
    models = {ONE: Usage(round(one * now), 60), TWO: Usage(round(two * now), 20)}
    return Reading(now, {}, models, round(others * now), 100, 5)


@pytest.mark.parametrize(
    ("one", "two", "others", "cause"),
    [
        (500, 100, 0, ONE),
        (100, 500, 0, TWO),
        (500, 0, 3000, None),  # a download, or the operating system itself
        (500, 0, 1900, ONE),
        (15, 0, 0, None),
        (0, 0, 0, None),
    ],
)
def test_who_moves_most_if_it_is_a_fair_part(one: float, two: float, others: float, cause: str | None) -> None:
    blame = Blame()
    for second in range(8):
        blame.add(reading(second, one, two, others))
    assert blame.cause(reading(8, one, two, others)) == cause


def test_the_blame_of_who_was_frozen_goes_once_it_could_have_shown_itself() -> None:
    blame = Blame()
    blame.add(reading(0, 500, 100))
    blame.froze(ONE)
    assert blame.cause(reading(100, 0, 500)) == ONE
    blame.add(reading(100, 0, 500))
    blame.thawed(100)
    for second in range(101, 110):
        blame.add(reading(second, 0, 500))
        assert blame.cause(reading(second, 0, 500)) == (ONE if second < 100 + AFTER_THAW else TWO)


def test_who_holds_half_of_the_ram_is_meant_only_while_ram_is_scarce() -> None:
    assert largest_model(reading(1, 0, 0)) == ONE
    assert largest_model(reading(1, 0, 0)._replace(available=10)) is None
    assert largest_model(reading(1, 0, 0)._replace(ram=200)) is None
    assert largest_model(Reading(1, {})) is None
