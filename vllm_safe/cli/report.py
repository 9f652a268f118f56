"""`vllm-safe report NAME`: one recorded run as a file of HTML, or in the terminal."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vllm_safe.errors import Failure

if TYPE_CHECKING:
    from vllm_safe.record.run import Run


@click.command(name="report")
@click.argument("name")
@click.option("--run", "which", metavar="N", default="1", help="Which run: 1 is the last, 2 the one before it; or its id.")
@click.option(
    "-o", "--output", metavar="FILE", type=click.Path(path_type=Path), help="The file to write instead of NAME-RUN.html; - is stdout."
)
@click.option("--force", is_flag=True, help="Overwrite whatever is there.")
@click.option("--text", "as_text", is_flag=True, help="Draw it in the terminal, and write no file.")
def command(name: str, which: str, output: Path | None, *, force: bool, as_text: bool) -> None:
    """Show what happened in a run: why it ended, and memory, swap, pressure, disk and cards over time.

    The page is one file that needs no network; what looks like a key or a token is left out of it.
    """
    from vllm_safe.report.answer import answer_of

    run = _read(name, which)
    answer = answer_of(run)
    if as_text:
        from vllm_safe.report.text import text_of

        on_terminal = sys.stdout.isatty()
        bold = (lambda line: click.style(line, bold=True)) if on_terminal else str
        click.echo("\n".join(text_of(run, answer, bold, colours=on_terminal)))
        return
    from vllm_safe.report.page import page_of
    from vllm_safe.report.write import write_report

    page = page_of(run, answer)
    if output == Path("-"):
        click.echo(page, nl=False)
        return
    path = output or Path(f"{name}-{run.start.run}.html")
    write_report(path, page, force=force)
    click.echo(f"{path}: open it in a browser")


def _read(name: str, which: str) -> Run:
    from vllm_safe.record.read import list_runs, read_run

    if not which.isdecimal():
        return read_run(name, which)
    runs = list_runs(name)
    number = int(which)
    if not runs:
        raise Failure(f"nothing is recorded of {name}", hint=f"A run is recorded from its start on: systemctl start vllm@{name}")
    if not 1 <= number <= len(runs):
        raise Failure(f"{name} has {len(runs)} recorded runs, and no number {number}", hint="1 is the last.")
    return read_run(name, runs[number - 1])
