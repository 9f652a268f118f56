"""How far a long step is: a bar on a terminal, STATUS= under systemd, else nothing. Standard library only."""

from __future__ import annotations

import shutil
import sys
import time
from typing import Self

from vllm_safe.common.notify import notify

_INTERVAL = 0.2  # seconds between two pictures
_BAR = 30  # columns


class Progress:
    """A context manager around the step. `text` says what is done: "writing /swapfile"; `total` is in the unit of `update`."""

    def __init__(self, text: str, total: int) -> None:
        self._text = text
        self._total = max(total, 1)
        self._start = time.monotonic()
        self._shown = self._start  # a step that is over at once draws nothing
        self._terminal = sys.stderr.isatty()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._terminal and self._shown > self._start:
            self._draw("")

    def update(self, done: int) -> None:
        """`done` of the total; cheap to call often."""
        now = time.monotonic()
        if now - self._shown < _INTERVAL:
            return
        self._shown = now
        share = min(max(done / self._total, 0.0), 1.0)
        words = f"{self._text}: {share:.0%}{self._left(share, now - self._start)}"
        notify(STATUS=words)
        if self._terminal:
            filled = round(share * _BAR)
            columns = shutil.get_terminal_size().columns
            self._draw(f"[{'#' * filled}{'.' * (_BAR - filled)}] {words}"[: columns - 1])

    @staticmethod
    def _draw(line: str) -> None:
        sys.stderr.write(f"\r\033[K{line}")
        sys.stderr.flush()

    @staticmethod
    def _left(share: float, spent: float) -> str:
        """The time that is left, when it is more than a moment and can be told."""
        left = spent / share - spent if share else 0.0
        if spent < 1 or left < 1:
            return ""
        minutes, seconds = divmod(round(left), 60)
        return f", {minutes} min left" if minutes else f", {seconds} s left"
