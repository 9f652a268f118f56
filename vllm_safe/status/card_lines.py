"""The GPUs as a table for `vllm-safe top`: a line for each, and below it what a person should know. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from vllm_safe.common.printable_text import printable
from vllm_safe.common.sizes import GIB, format_span
from vllm_safe.decide.limits import unit_of
from vllm_safe.driver.card_facts import NvmlCard, Slowdown
from vllm_safe.driver.card_readings import CardReading, CardsReading

_LATE = 5.0  # seconds without an answer, after which the figures are no longer those of now
_WIDE = 100  # columns from which on there is room for the names
_NAME = 28  # columns of a name
_UNKNOWN = "?"
_HELD = 256 << 20  # bytes in use that somebody must hold, whether or not the driver says who: CUDA alone takes as much
_HEAD = ("GPU", "name", "GiB used", "by model (GiB)", "busy", "watts", "heat", "link")
_SLOWED = {Slowdown.HEAT | Slowdown.HEAT_HARDWARE: "heat", Slowdown.POWER_BRAKE: "their power supply"}
_UNIT = unit_of("\0").split("\0")  # what is before and after the name of a model
_NUMBERS = {0, 2, 4, 5, 6, 7}  # columns that are aligned to the right
_NAMES, _OWNERS = 1, 3


def cards_as_lines(reading: CardsReading, columns: int) -> list[str]:
    """Return the table, in at most `columns` columns; the first line is its head.

    A figure that the driver does not tell is a question mark, which is explained.
    """
    if reading.problem:
        said = (f"GPUs: not known: {reading.problem}", *(f"  {hint}" for hint in [reading.hint] if hint))
        return [printable(line)[:columns] for line in said]
    if not reading.answered:
        return [f"GPUs: waiting for the driver ({format_span(reading.age)})"]
    if not reading.cards:
        return ["GPUs: the driver reports none"]
    rows = [_HEAD, *(_row(index, card) for index, card in enumerate(reading.cards))]
    if columns < _WIDE:
        rows = [(*row[:_NAMES], "", *row[_NAMES + 1 :]) for row in rows]
    return [line[:columns] for line in (*_aligned(rows, columns), *_notes(reading), *_explained(rows))]


def _row(index: int, at: CardReading) -> tuple[str, ...]:
    if not at.responds:
        return (str(index), "", "", "does not respond", "", "", "", "")
    card, limit = at.card, at.card.power_limit
    return (
        str(index),
        printable(card.name)[:_NAME],
        f"{_gib(card.used)}/{_gib(card.memory)}" if card.memory else _UNKNOWN,
        _by_model(card),
        _UNKNOWN if at.busy is None else f"{at.busy:.0%}",
        _UNKNOWN if at.draw is None else f"{at.draw:.0f}" + (f"/{limit / 1000:.0f}" if limit else ""),
        _UNKNOWN if card.temperature is None else f"{card.temperature} C",
        f"x{at.lanes}" + (f"/{at.most_lanes}" if at.most_lanes > at.lanes else "") if at.lanes else _UNKNOWN,
    )


def _by_model(card: NvmlCard) -> str:
    """Return who holds the memory: models, then other programs, the largest first. Sizes come before the names, which may be cut."""
    if not card.processes and card.used >= _HELD:
        return _UNKNOWN
    held: dict[tuple[bool, str], list[int]] = {}
    for process in card.processes:
        model = process.unit.removeprefix(_UNIT[0]).removesuffix(_UNIT[1]) if process.unit.startswith(_UNIT[0]) else ""
        held.setdefault((not model, model or process.program or f"process {process.pid}"), []).append(process.memory)
    ordered = sorted(held.items(), key=lambda item: (item[0][0], -sum(item[1])))
    return ", ".join(f"{_gib(sum(sizes)) if all(sizes) else _UNKNOWN} {printable(name)}" for (_, name), sizes in ordered)


def _notes(reading: CardsReading) -> Iterator[str]:
    if reading.age > _LATE:
        yield f"GPUs: no answer for {format_span(reading.age)}: these figures are old, and a GPU may hang"
    if silent := [index for index, at in enumerate(reading.cards) if not at.responds]:
        yield f"does not respond: GPU {', '.join(map(str, silent))}; journalctl -k -g NVRM shows why"
    for bits, reason in _SLOWED.items():
        if slowed := [index for index, at in enumerate(reading.cards) if at.card.slowed_by & bits]:
            yield f"slowed down by {reason}: GPU {', '.join(map(str, slowed))}"


def _explained(rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    if any(cell.startswith(_UNKNOWN) or f", {_UNKNOWN}" in cell for row in rows for cell in row):
        yield f"{_UNKNOWN}: the driver does not tell"


def _aligned(rows: Iterable[tuple[str, ...]], columns: int) -> Iterator[str]:
    """Align the cells. The column of the models gets what the others leave, and is cut there."""
    table = list(rows)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    others = sum(width + 2 for number, width in enumerate(widths) if width and number != _OWNERS)
    widths[_OWNERS] = max(4, min(widths[_OWNERS], columns - others))
    for row in table:
        cells = (
            cell.rjust(width) if number in _NUMBERS else _cut(cell, width).ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
            if width
        )
        yield "  ".join(cells).rstrip()


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 2]}.."


def _gib(size: int) -> str:
    return f"{size / GIB:.1f}"
