"""`vllm-safe status`: every configured and every running model."""

from __future__ import annotations

import json
import time
from pathlib import Path

import click

from vllm_safe.cli.main import config_option, json_option, optional_name_argument
from vllm_safe.cli.watched_models import WatchedModels
from vllm_safe.status.status_lines import status_as_json, status_as_lines


@click.command(name="status")
@optional_name_argument
@json_option
@config_option
def command(name: str | None, config_path: Path, *, as_json: bool) -> None:
    """Show every model: state, progress, RAM, swap, pressure, and the actions of the guard. Any user may run it.

    Pressure is the share of the last ten seconds in which all tasks were stalled. "The system" means logins and services.
    """
    models = WatchedModels(name, config_path)
    if as_json:
        click.echo(json.dumps([status_as_json(seen, models.why(seen)) for seen in models.read()], indent=2, ensure_ascii=False))
        return
    blocks = [status_as_lines(seen, time.localtime, models.why(seen)) for seen in models.read()]
    lines = [line if number else click.style(line, bold=True) for block in blocks for number, line in enumerate(block)]
    click.echo("\n".join(lines) or "no model is configured or running")
