"""Tests of the table of GPUs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from vllm_safe.driver.card_facts import CardProcess, NvmlCard
from vllm_safe.driver.card_readings import CardReading, CardsReading
from vllm_safe.status.card_lines import cards_as_lines

GIB = 1 << 30
HELD = (
    CardProcess(7, 9 * GIB, unit="vllm@qwen72b.service"),
    CardProcess(8, GIB, unit="vllm@qwen72b.service"),
    CardProcess(9, GIB // 2, "Xorg"),
)
FACTS = NvmlCard(
    "NVIDIA GeForce RTX 3060", (8, 6), memory=12 * GIB, used=11 * GIB, processes=HELD, power_limit=170_000, temperature=71, slowed_by=0x4
)
CARD = CardReading(FACTS, 0.97, 138.4, 1, 16)
LOST = CardReading(NvmlCard("", (0, 0)))


def with_facts(**facts: Any) -> CardReading:  # noqa: ANN401 - fields of NvmlCard
    return replace(CARD, card=replace(FACTS, **facts))


def table(*cards: CardReading, columns: int = 80, age: float = 0.3) -> list[str]:
    return cards_as_lines(CardsReading(age, cards=cards), columns)


def test_a_line_for_each_card_with_all_its_figures() -> None:
    head, line = table(CARD)
    assert head.split("  ")[0] == "GPU"
    assert " ".join(line.split()) == "0 11.0/12.0 10.0 qwen72b, 0.5 Xorg 97% 138/170 71 C x1/16"


def test_there_is_room_for_names_on_a_wide_terminal() -> None:
    assert "RTX 3060" in table(CARD, columns=132)[1]
    assert "RTX 3060" not in table(CARD, columns=80)[1]


@pytest.mark.parametrize("columns", [80, 100, 132])
def test_nothing_is_wider_than_the_terminal_or_steers_it(columns: int) -> None:
    held = tuple(CardProcess(pid, GIB, "\x1b]0;x\x07" * 9, f"vllm@{'m' * 64}.service" if pid else "") for pid in range(3))
    hostile = with_facts(name="\x1b[2J" * 40, used=99999 * GIB, processes=held, slowed_by=0xFF)
    for line in table(*(hostile,) * 12, columns=columns, age=99.0):
        assert len(line) <= columns
        assert line.isprintable()


def test_the_figures_stay_where_a_name_is_long() -> None:
    line = table(with_facts(processes=(CardProcess(7, 9 * GIB, unit=f"vllm@{'m' * 64}.service"),)))[1]
    assert "9.0 mmm" in line
    assert line.endswith("x1/16")


def test_what_is_not_known_is_said() -> None:
    lines = table(CardReading(NvmlCard("n", (8, 6), used=GIB)))
    assert lines[1].split() == ["0", "?", "?", "?", "?", "?", "?"]
    assert lines[-1] == "?: the driver does not tell"
    assert "?" not in "".join(table(CARD))
    partly = table(with_facts(processes=(CardProcess(7, 0, unit="vllm@x.service"), CardProcess(8, GIB, unit="vllm@x.service"))))
    assert "? x " in partly[1]
    assert partly[-1] == "?: the driver does not tell"


def test_a_card_that_nobody_uses_is_not_a_riddle() -> None:
    assert table(with_facts(used=GIB // 100, processes=()))[1].split() == ["0", "0.0/12.0", "97%", "138/170", "71", "C", "x1/16"]


def test_a_card_that_does_not_respond_or_is_hot_is_named() -> None:
    lines = table(CARD, LOST, with_facts(slowed_by=0x44), LOST, with_facts(slowed_by=0x80))
    assert "does not respond: GPU 1, 3; journalctl -k -g NVRM shows why" in lines
    assert "slowed down by heat: GPU 2" in lines
    assert "slowed down by their power supply: GPU 4" in lines
    assert not [line for line in table(CARD) if "slowed" in line], "its power limit is seen by its draw"


def test_old_figures_are_not_those_of_now() -> None:
    assert "no answer for 12 s" in table(CARD, age=12.9)[-1]
    assert not any("no answer" in line for line in table(CARD))


@pytest.mark.parametrize(
    ("reading", "lines"),
    [
        (CardsReading(1.0, problem="no library", hint="Install it."), ["GPUs: not known: no library", "  Install it."]),
        (CardsReading(99.0, problem="no library"), ["GPUs: not known: no library"]),
        (CardsReading(3.0, answered=False), ["GPUs: waiting for the driver (3 s)"]),
        (CardsReading(3.0), ["GPUs: the driver reports none"]),
    ],
)
def test_no_card_at_all_has_a_reason(reading: CardsReading, lines: list[str]) -> None:
    assert cards_as_lines(reading, 80) == lines


def test_the_link_is_that_of_now_and_what_is_possible_if_that_is_more() -> None:
    assert table(replace(CARD, lanes=16))[1].endswith(" x16")
    assert table(replace(CARD, most_lanes=0))[1].endswith(" x1")
