"""Progress of a transfer: one line that is updated on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import shutil
import sys
import time
from collections import deque

_TERMINAL_EVERY, _PLAIN_EVERY = 0.2, 30.0  # seconds between two lines
_WINDOW = 20.0  # seconds over which the rate is measured


class TransferProgress:
    """Counter of bytes that shows the progress on stderr. `came`: bytes from the hub; `found`: bytes on disk already."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0
        self._terminal = sys.stderr.isatty()
        self._shown = time.monotonic() - (_TERMINAL_EVERY if self._terminal else _PLAIN_EVERY)
        self._transferred = 0
        self._marks: deque[tuple[float, int]] = deque()  # (time, bytes transferred by then), one per second

    def came(self, count: int) -> None:
        """Count transferred bytes."""
        now = time.monotonic()
        self._transferred += count
        if not self._marks or now - self._marks[-1][0] >= 1:
            self._marks.append((now, self._transferred))
            while now - self._marks[0][0] > _WINDOW:
                self._marks.popleft()
        self.found(count)

    def found(self, count: int) -> None:
        """Count bytes that need no transfer; a negative count subtracts."""
        self._done += count
        if time.monotonic() - self._shown >= (_TERMINAL_EVERY if self._terminal else _PLAIN_EVERY):
            self._show()

    def finish(self) -> None:
        """Show the final state and end the line."""
        self._show()
        if self._terminal:
            sys.stderr.write("\n")

    def tell(self, text: str) -> None:
        """Print another message, on a line of its own."""
        sys.stderr.write(f"\r\x1b[K{text}\n" if self._terminal else f"{text}\n")
        sys.stderr.flush()

    def _show(self) -> None:
        self._shown = time.monotonic()
        text = progress_line(self._done, self._total, self._rate(self._shown))
        width = shutil.get_terminal_size().columns - 1
        sys.stderr.write(f"\r{text[:width]}\x1b[K" if self._terminal else f"{text}\n")
        sys.stderr.flush()

    def _rate(self, now: float) -> float:
        """Return the recent bytes per second, or 0 while that is not known."""
        began, had = self._marks[0] if self._marks else (now, 0)
        return (self._transferred - had) / (now - began) if now - began >= 2 else 0.0


def progress_line(done: int, total: int, rate: float) -> str:
    """Return a line such as "12.3 of 71.8 GiB, 17 %, 45.2 MiB/s, 22 min left". rate: bytes per second, 0 if not known."""
    unit, name = next(((unit, name) for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB")) if total >= unit), (1 << 10, "KiB"))
    share = int(100 * done / total) if total else 100
    parts = [f"{done / unit:.1f} of {total / unit:.1f} {name}", f"{share} %"]
    if rate > 0 and done < total:
        parts += [f"{rate / (1 << 20):.1f} MiB/s", f"{_span((total - done) / rate)} left"]
    return ", ".join(parts)


def _span(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02} min"
