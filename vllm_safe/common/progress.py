"""Progress of a long step: a bar on a terminal, STATUS= under systemd, otherwise nothing. Standard library only."""

from __future__ import annotations

import shutil
import sys
import time
from typing import Self

from vllm_safe.common.notify import notify

_INTERVAL = 0.2  # seconds between two updates
_BAR = 30  # columns


class Progress:
    """A context manager around the step. `text` names the step, such as "writing /swapfile". `total` is in the unit of `update`."""

    def __init__(self, text: str, total: int) -> None:
        self._text = text
        self._total = max(total, 1)
        self._start = time.monotonic()
        self._shown = self._start  # so that a step shorter than _INTERVAL draws nothing
        self._terminal = sys.stderr.isatty()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._terminal and self._shown > self._start:
            self._draw("")

    def update(self, done: int) -> None:
        """Show that `done` of the total is done. Calls are cheap."""
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
        """Return the time that is left, or "" where that is less than a second or not known yet."""
        left = spent / share - spent if share else 0.0
        if spent < 1 or left < 1:
            return ""
        minutes, seconds = divmod(round(left), 60)
        return f", {minutes} min left" if minutes else f", {seconds} s left"
