"""`vllm-safe top`: the models, the machine and the GPUs on one screen that is drawn again each second."""

from __future__ import annotations

import os
import select
import shutil
import signal
import sys
import termios
import time
import tty
from collections import deque
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import click

from vllm_safe.cli.main import config_option, optional_name_argument
from vllm_safe.cli.watched_models import WatchedModels
from vllm_safe.driver.card_readings import CardFeed
from vllm_safe.status.card_lines import cards_as_lines
from vllm_safe.status.status_facts import read_machine_memory
from vllm_safe.status.status_lines import COLUMNS, ModelStatus
from vllm_safe.status.top_screen import ScreenLine, ShownModel, top_screen

_EVERY = 1.0  # seconds
_ROWS = 24  # of a terminal that does not say
_LOOKS = 15  # screens over which the tokens per second are averaged: the main process counts them every few seconds
_PATIENCE = 20.0  # seconds for the first answer of the driver, where there is only one screen: a cold one takes 2 s per GPU
# Escape sequences of xterm and its successors: switch to the alternate screen without a cursor, and back.
_ENTER, _LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
_HOME, _REST_OF_LINE, _REST_OF_SCREEN = "\x1b[H", "\x1b[K", "\x1b[J"


@click.command(name="top")
@optional_name_argument
@config_option
def command(name: str | None, config_path: Path) -> None:
    """Watch every model and GPU on one screen: progress, memory, pressure, the guard, power and heat. Any user may run it.

    It is drawn again each second, until q or ^C. If the output is no terminal, it is one screen of text.
    """
    models = WatchedModels(name, config_path)
    with closing(CardFeed()) as cards:
        screen = _Screen(models, cards)
        if sys.stdout.isatty() and os.environ.get("TERM") not in {None, "dumb"}:
            _redraw(screen)
        else:
            click.echo(_styled(screen.lines(shutil.get_terminal_size().columns, None, wait=_PATIENCE)))


class _Screen:
    """What is on the screen, with the status of the last seconds."""

    def __init__(self, models: WatchedModels, cards: CardFeed) -> None:
        self._models, self._cards = models, cards
        self._earlier: deque[dict[str, ModelStatus]] = deque(maxlen=_LOOKS)

    def lines(self, columns: int, rows: int | None, *, wait: float) -> list[ScreenLine]:
        """Read and return the screen. wait: seconds for the first answer of the driver; later ones are not waited for."""
        seen = self._models.read()
        before = self._earlier[0] if self._earlier else {}
        self._earlier.append({model.name: model for model in seen})
        shown = [ShownModel(model, self._models.why(model), before.get(model.name)) for model in seen]
        cards = cards_as_lines(self._cards.latest(wait), columns)
        return top_screen(time.time(), read_machine_memory(), shown, cards, time.localtime, columns=columns, rows=rows)


def _styled(lines: list[ScreenLine], end: str = "\n") -> str:
    return end.join(click.style(line.text, bold=True) if line.heading else line.text for line in lines)


def _redraw(screen: _Screen) -> None:
    """Redraw the screen every second, in one write so that it does not flicker. The last picture is left on the normal screen."""
    lines: list[ScreenLine] = []
    with suppress(KeyboardInterrupt), _alternate_screen():
        for _ in _seconds():
            columns, rows = os.get_terminal_size(sys.stdout.fileno())  # both are 0 on a serial console
            lines = screen.lines(columns or COLUMNS, rows or _ROWS, wait=_EVERY / 2)
            sys.stdout.write(_HOME + _styled(lines, f"{_REST_OF_LINE}\r\n") + _REST_OF_LINE + _REST_OF_SCREEN)
            sys.stdout.flush()
    click.echo(_styled(lines))


def _seconds() -> Iterator[None]:
    """Yield once a second until q is typed, or until KeyboardInterrupt, which ^C and SIGTERM raise. The caller ends normally then."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    due = time.monotonic()
    while True:
        yield
        due = max(due + _EVERY, time.monotonic())
        while (left := due - time.monotonic()) > 0:
            if not sys.stdin.isatty():
                time.sleep(left)
            elif select.select([sys.stdin], [], [], left)[0] and os.read(sys.stdin.fileno(), 64) in {b"q", b"Q", b""}:
                return


@contextmanager
def _alternate_screen() -> Iterator[None]:
    """Switch to a screen of its own, on which typed keys are read at once and not shown; in the end, the terminal is as it was."""
    keyboard = sys.stdin.fileno() if sys.stdin.isatty() else None
    before = None if keyboard is None else termios.tcgetattr(keyboard)
    sys.stdout.write(_ENTER)
    try:
        if keyboard is not None:
            tty.setcbreak(keyboard)
        yield
    finally:
        if keyboard is not None and before is not None:
            termios.tcsetattr(keyboard, termios.TCSADRAIN, before)
        sys.stdout.write(_LEAVE)
        sys.stdout.flush()
