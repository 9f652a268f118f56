"""The latest figures of all cards, from card_feed.py in a process of its own: reading them never blocks."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vllm_safe.common.kernfs import read_lanes
from vllm_safe.contract.run_encoding import from_line, mapping, number, text
from vllm_safe.driver.card_facts import NvmlCard, parse_card

_FEED = (sys.executable, "-I", "-B", str(Path(__file__).with_name("__main__.py")), "feed")
_LONGEST = 1 << 20  # bytes of a line


@dataclass(frozen=True)
class CardReading:
    """One card at one moment. None, or 0 lanes: not known."""

    card: NvmlCard
    busy: float | None = None  # share of the last second, 0..1
    draw: float | None = None  # watts
    lanes: int = 0  # of its PCIe link
    most_lanes: int = 0  # that the card has

    @property
    def responds(self) -> bool:
        """Whether the driver reaches it."""
        return self.card.capability > (0, 0)


@dataclass(frozen=True)
class CardsReading:
    """All cards at one moment. age: seconds since then, or since the first question if there was no answer yet (`answered`)."""

    age: float
    answered: bool = True
    cards: tuple[CardReading, ...] = ()
    problem: str = ""  # why NVML cannot be used, in one line
    hint: str = ""


class CardFeed:
    """A process that reads the figures each second, until `close`."""

    def __init__(self, command: Sequence[str] = _FEED, root: Path = Path("/")) -> None:
        self._root = root
        self._child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert self._child.stdout  # noqa: S101 - for mypy: it is a pipe
        self._pipe = self._child.stdout
        os.set_blocking(self._pipe.fileno(), False)
        self._rest = b""
        self._since = time.monotonic()
        self._last = CardsReading(0.0, answered=False)

    def latest(self, wait: float = 0.0) -> CardsReading:
        """Return the last figures. wait: seconds to wait for the first ones."""
        until = time.monotonic() + wait
        while True:
            self._read()
            left = until - time.monotonic()
            if self._last.answered or left <= 0:
                return replace(self._last, age=time.monotonic() - self._since)
            select.select([self._pipe], [], [], left)

    def close(self) -> None:
        """End the process. One that hangs in the kernel cannot be killed, and is not waited for."""
        self._pipe.close()
        self._child.kill()
        with suppress(subprocess.TimeoutExpired):
            self._child.wait(1.0)

    def _read(self) -> None:
        """Take over the last whole line that there is. A program that ended without one cannot use NVML."""
        with suppress(BlockingIOError):
            while more := os.read(self._pipe.fileno(), 1 << 16):
                self._rest = (self._rest + more)[-_LONGEST:]
            if not self._last.answered and b"\n" not in self._rest:
                self._last = CardsReading(0.0, problem="the program that asks NVIDIA's driver ended without an answer")
        *lines, self._rest = self._rest.split(b"\n")
        if lines:
            self._last, self._since = self._unpack(lines[-1]), time.monotonic()

    def _unpack(self, line: bytes) -> CardsReading:
        said = mapping(from_line(line))
        try:
            cards = tuple(self._card(mapping(card)) for card in said.get("cards", ()))
        except (AttributeError, KeyError, TypeError, ValueError):
            return CardsReading(0.0, problem="the program that asks NVIDIA's driver gave no sensible answer")
        return CardsReading(0.0, cards=cards, problem=text(said.get("problem")), hint=text(said.get("hint")))

    def _card(self, said: dict[str, Any]) -> CardReading:
        card, (busy, draw) = parse_card(said["facts"], self._root), (number(said.get(key)) for key in ("busy", "draw"))
        device = f"{self._root}/sys/bus/pci/devices/{card.pci}"
        return CardReading(
            card,
            busy=None if busy is None else busy / 100,
            draw=None if draw is None else draw / 1000,
            lanes=read_lanes(f"{device}/current_link_width") if card.pci else 0,
            most_lanes=read_lanes(f"{device}/max_link_width") if card.pci else 0,
        )
