"""A pipe that signals are written to, so that a loop that waits for descriptors wakes up, and none is lost between looking and waiting."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable

_MOST = 512  # signals that are read at once


def open_signal_pipe(numbers: Iterable[signal.Signals]) -> int:
    """Return the descriptor that can be read once one of these signals has come (see read_signals). Only the main thread may call it."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    for number in numbers:
        signal.signal(number, lambda *_: None)  # a handler of Python's, without which nothing is written
    return reading


def read_signals(pipe: int) -> bytes:
    """Return the numbers of the signals that came, one a byte; b"" if there is none."""
    try:
        return os.read(pipe, _MOST)
    except BlockingIOError:
        return b""


def asks_to_stop(numbers: bytes) -> bool:
    """Whether systemd, or a person at a terminal, wants this process to end."""
    return signal.SIGTERM in numbers or signal.SIGINT in numbers
