"""`vllm-safe status`: every model of the configuration and every one that runs, at this moment or every second."""

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
# xterm's and every terminal's since: a screen of its own without a cursor, and back to what was there before.
_ENTER, _LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
_HOME, _REST_OF_LINE, _REST_OF_SCREEN = "\x1b[H", "\x1b[K", "\x1b[J"


@click.command(name="status")
@optional_name_argument
@click.option("--watch", is_flag=True, help="Again every second, until ^C; on a pipe a line for each model.")
@json_option
@config_option
def command(name: str | None, config_path: Path, *, watch: bool, as_json: bool) -> int:
    """Show every model: state, progress, RAM, swap, pressure, and what the guard did. Anybody may.

    Pressure is the share of the last ten seconds in which all waited; the system is what logins and services live in.
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
    """The models that are asked for, and what is said of them; verdicts on runs that are over are kept."""

    def __init__(self, name: str | None, config_path: Path) -> None:
        self._asked = name
        self._verdicts: dict[str, str] = {}
        self._configured = _configured(config_path)
        if name is not None and not self._seen():
            raise Failure(f"there is no model {name}", hint=f"{config_path} has: {', '.join(self._configured) or 'none'}")

    def lines(self) -> list[str]:
        blocks = [status_as_lines(seen, time.localtime, self._why(seen)) for seen in self._seen()]
        styled = [line if number else click.style(line, bold=True) for block in blocks for number, line in enumerate(block)]
        return styled or ["no model is configured, and none runs"]

    def short_lines(self) -> list[str]:
        return [status_as_line(seen, time.localtime) for seen in self._seen()]

    def as_json(self, *, indent: int | None = 2) -> str:
        return json.dumps([status_as_json(seen, self._why(seen)) for seen in self._seen()], indent=indent, ensure_ascii=False)

    def _seen(self) -> tuple[ModelStatus, ...]:
        names = dict.fromkeys([*self._configured, *running_models()])
        return read_model_status(name for name in names if self._asked in {None, name})

    def _why(self, seen: ModelStatus) -> str:
        """The verdict on the last run of a model that does not run; "" where it may not be read."""
        if seen.active not in {"failed", "inactive"} and seen.sub != "auto-restart":
            return ""
        try:
            for run in list_runs(seen.name)[:1]:
                if run not in self._verdicts:
                    recorded, verdict = judge_run(seen.name, run)
                    if recorded.end is None:  # the recorder is not done yet, or never will be: not to be kept
                        return verdict.sentence if verdict.code != "running" else ""
                    self._verdicts[run] = verdict.sentence
                return self._verdicts[run]
        except Failure:
            pass
        return ""


def _configured(config_path: Path) -> tuple[str, ...]:
    """The models of the configuration; what runs is shown even if that has a mistake."""
    try:
        return tuple(load(config_path).models)
    except ConfigError as error:
        click.echo(f"{error.message}\n  what runs is shown all the same", err=True)
        return ()


def _redraw(models: _Models) -> None:
    """In place, each picture in one write, so that nothing flickers; the last one stays on the screen that was there before."""
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
    """Lines that follow each other."""
    with suppress(KeyboardInterrupt):
        for _ in _seconds():
            click.echo(models.as_json(indent=None) if as_json else "\n".join(models.short_lines()))
            sys.stdout.flush()


def _seconds() -> Iterator[None]:
    """Once a second until KeyboardInterrupt: ^C or SIGTERM, which are no mistake."""
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
