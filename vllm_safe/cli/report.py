"""`vllm-safe report NAME`: one recorded run as an HTML file, or in the terminal."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from vllm_safe.cli.main import config_option, name_argument
from vllm_safe.report.html_report import render_html
from vllm_safe.report.judged_run import choose_run, judge_run, recorded_runs
from vllm_safe.report.report_file import write_report


@click.command(name="report")
@name_argument
@click.option(
    "--run", "which", metavar="N|ID", default="1", show_default=True, help="The run: 1 is the last, 2 the one before it, or an ID."
)
@click.option(
    "-o", "--output", metavar="FILE", type=click.Path(path_type=Path), help="The file to write instead of NAME-RUN.html; - for stdout."
)
@click.option("-f", "--force", is_flag=True, help="Overwrite an existing file.")
@click.option("--text", "as_text", is_flag=True, help="Print the report to the terminal, and write no file.")
@config_option
def command(  # noqa: PLR0913 -- each is an option
    name: str, which: str, config_path: Path, output: Path | None, *, force: bool, as_text: bool
) -> None:
    """Show a recorded run: why it ended, and memory, swap, pressure, disk and GPUs over time.

    The page is one file that needs no network. Text that looks like a key or a token is left out.
    """
    run, verdict = judge_run(name, choose_run(name, recorded_runs(name, config_path, "report"), which))
    if as_text:
        from vllm_safe.report.text_report import render_text  # noqa: PLC0415 - plotille is slow to import, and a page does not need it

        on_terminal = sys.stdout.isatty()
        bold = (lambda line: click.style(line, bold=True)) if on_terminal else str
        click.echo("\n".join(render_text(run, verdict, bold, colours=on_terminal)))
        return
    page = render_html(run, verdict)
    if output == Path("-"):
        click.echo(page, nl=False)
        return
    path = output or Path(f"{name}-{run.start.run}.html")
    write_report(path, page, force=force)
    click.echo(f"wrote {path}: open it in a browser")
