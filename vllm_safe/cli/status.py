"""`vllm-safe status`: every configured and every running model, once or every second."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import click

from vllm_safe.cli.main import config_option, json_option, optional_name_argument
from vllm_safe.common.errors import ConfigError, Failure
from vllm_safe.config.reader import load
from vllm_safe.record.run_reader import list_runs
from vllm_safe.report.judged_run import judge_run
from vllm_safe.status.status_facts import read_model_status, running_models
from vllm_safe.status.status_lines import ModelStatus, status_as_json, status_as_line, status_as_lines

_EVERY = 1.0  # seconds
# Escape sequences of xterm and its successors: switch to the alternate screen without a cursor, and back.
_ENTER, _LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
_HOME, _REST_OF_LINE, _REST_OF_SCREEN = "\x1b[H", "\x1b[K", "\x1b[J"


@click.command(name="status")
@optional_name_argument
@click.option("--watch", is_flag=True, help="Repeat every second until ^C; on a pipe, with one line per model.")
@json_option
@config_option
def command(name: str | None, config_path: Path, *, watch: bool, as_json: bool) -> int:
    """Show every model: state, progress, RAM, swap, pressure, and the actions of the guard. Any user may run it.

    Pressure is the share of the last ten seconds in which all tasks were stalled. "The system" means logins and services.
    """
    models = _Models(name, config_path)
    if not watch:
        click.echo(models.as_json() if as_json else "\n".join(models.lines()))
    elif not as_json and sys.stdout.isatty() and os.environ.get("TERM") not in {None, "dumb"}:
        _redraw(models)
    else:
        _repeat(models, as_json=as_json)
    return 0


class _Models:
    """The requested models and their status. Verdicts on finished runs are cached."""

    def __init__(self, name: str | None, config_path: Path) -> None:
        self._asked = name
        self._verdicts: dict[str, str] = {}
        self._configured = _configured(config_path)
        if name is not None and not self._seen():
            raise Failure(f"there is no model {name}", hint=f"Configured models: {', '.join(self._configured) or 'none'}.")

    def lines(self) -> list[str]:
        blocks = [status_as_lines(seen, time.localtime, self._why(seen)) for seen in self._seen()]
        styled = [line if number else click.style(line, bold=True) for block in blocks for number, line in enumerate(block)]
        return styled or ["no model is configured or running"]

    def short_lines(self) -> list[str]:
        return [status_as_line(seen, time.localtime) for seen in self._seen()]

    def as_json(self, *, indent: int | None = 2) -> str:
        return json.dumps([status_as_json(seen, self._why(seen)) for seen in self._seen()], indent=indent, ensure_ascii=False)

    def _seen(self) -> tuple[ModelStatus, ...]:
        names = dict.fromkeys([*self._configured, *running_models()])
        return read_model_status(name for name in names if self._asked in {None, name})

    def _why(self, seen: ModelStatus) -> str:
        """Return the verdict on the last run of a model that is not running, or "" if this user may not read the run."""
        if seen.active not in {"failed", "inactive"} and seen.sub != "auto-restart":
            return ""
        try:
            for run in list_runs(seen.name)[:1]:
                if run not in self._verdicts:
                    recorded, verdict = judge_run(seen.name, run)
                    if recorded.end is None:  # the recorder has not written the end, and may never do so: not cached
                        return verdict.sentence if verdict.code != "running" else ""
                    self._verdicts[run] = verdict.sentence
                return self._verdicts[run]
        except Failure:
            pass
        return ""


def _configured(config_path: Path) -> tuple[str, ...]:
    """Return the configured models. If the configuration has an error, print it: running models are shown all the same."""
    try:
        return tuple(load(config_path).models)
    except ConfigError as error:
        click.echo(f"{error.message}\n  running models are shown all the same", err=True)
        return ()


def _redraw(models: _Models) -> None:
    """Redraw the screen every second, in one write so that it does not flicker. The last picture is left on the normal screen."""
    lines: list[str] = []
    with suppress(KeyboardInterrupt), _screen():
        for _ in _seconds():
            lines = models.lines()
            size = shutil.get_terminal_size()
            shown = lines if len(lines) < size.lines else [*lines[: size.lines - 2], f"... {len(lines) - size.lines + 2} more lines"]
            sys.stdout.write(_HOME + "".join(f"{line}{_REST_OF_LINE}\r\n" for line in shown) + _REST_OF_SCREEN)
            sys.stdout.flush()
    click.echo("\n".join(lines))


def _repeat(models: _Models, *, as_json: bool) -> None:
    """Print the models every second, one block of lines after the other."""
    with suppress(KeyboardInterrupt):
        for _ in _seconds():
            click.echo(models.as_json(indent=None) if as_json else "\n".join(models.short_lines()))
            sys.stdout.flush()


def _seconds() -> Iterator[None]:
    """Yield once a second until KeyboardInterrupt, which ^C and SIGTERM raise. The caller ends normally then."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    due = time.monotonic()
    while True:
        yield
        due = max(due + _EVERY, time.monotonic())
        time.sleep(max(0.0, due - time.monotonic()))


@contextmanager
def _screen() -> Iterator[None]:
    sys.stdout.write(_ENTER)
    try:
        yield
    finally:
        sys.stdout.write(_LEAVE)
        sys.stdout.flush()
