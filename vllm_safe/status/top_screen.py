"""The screen of `vllm-safe top`: the machine, what runs, the GPUs, and what does not run. Pure: the time zone is handed in."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

from vllm_safe.common.printable_text import printable
from vllm_safe.common.sizes import format_size
from vllm_safe.status.status_lines import COLUMNS, LocalTime, ModelStatus, describe_phase, status_as_lines


class ShownModel(NamedTuple):
    """One model on the screen. why: the verdict on its last run, or "". before: an earlier status, or None."""

    seen: ModelStatus
    why: str = ""
    before: ModelStatus | None = None

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to watch: it was stopped, or never started."""
        return self.seen.active in {"inactive", ""} and not self.seen.preparing


class MachineMemory(NamedTuple):
    """RAM and swap of the machine in bytes. None: not known."""

    ram: int | None = None
    ram_available: int | None = None
    swap: int | None = None
    swap_free: int | None = None


class ScreenLine(NamedTuple):
    """A line of the screen. heading: it is printed in bold."""

    text: str
    heading: bool = False


def top_screen(  # noqa: PLR0913 - all that is on the screen
    now: float,
    machine: MachineMemory,
    models: Sequence[ShownModel],
    cards: Sequence[str],
    local: LocalTime,
    *,
    columns: int = COLUMNS,
    rows: int | None = None,
) -> list[ScreenLine]:
    """Return the lines. Without `rows` there are as many as it takes; else blank lines are left out first, and then the last lines."""
    blocks = [[ScreenLine(_machine_line(now, machine, local), heading=True)]]
    for model in models:
        if not model.is_idle:
            seen = model.seen._replace(gpus=())  # the GPUs have lines of their own
            first, *more = status_as_lines(seen, local, model.why, before=model.before, columns=columns)
            blocks.append([ScreenLine(first, heading=True), *map(ScreenLine, more)])
    blocks.append([ScreenLine(line, heading=not number) for number, line in enumerate(cards)])
    blocks.append([ScreenLine(_idle_line(model)) for model in models if model.is_idle])
    if not models:
        blocks.append([ScreenLine("no model is configured or running")])
    blocks = [[line._replace(text=line.text[:columns]) for line in block] for block in blocks if block]
    spaced = [line for block in blocks for line in (ScreenLine(""), *block)][1:]
    if rows is None or len(spaced) <= rows:
        return spaced
    dense = [line for block in blocks for line in block]
    left = len(dense) - rows + 1
    return dense if left <= 1 else [*dense[: rows - 1], ScreenLine(f"... {left} more lines: a taller terminal shows them"[:columns])]


def _machine_line(now: float, machine: MachineMemory, local: LocalTime) -> str:
    parts = [time.strftime("%H:%M:%S", local(now))]
    if machine.ram and machine.ram_available is not None:
        parts.append(f"RAM {format_size(machine.ram_available)} of {format_size(machine.ram)} available")
    if machine.swap and machine.swap_free is not None:
        parts.append(f"swap {format_size(machine.swap - machine.swap_free)} of {format_size(machine.swap)} used")
    return "  ".join(parts)


def _idle_line(model: ShownModel) -> str:
    """Return one line about a model that does not run."""
    never = model.seen.active == "inactive" and model.seen.changed is None and not model.why
    state = "not started" if never else describe_phase(model.seen)
    demand = model.seen.demand
    more = demand.waits_for or model.why
    return printable(f"{model.seen.name}  {state}{', on demand' if demand.listens else ''}{f': {more}' if more else ''}")
