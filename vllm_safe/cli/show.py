"""`vllm-safe show NAME`: what a start would run, and where each value came from."""

from __future__ import annotations

import json
from pathlib import Path

import click

from vllm_safe.cli.main import config_option, json_option, name_argument
from vllm_safe.cli.table import columns


@click.command(name="show")
@name_argument
@json_option
@config_option
def command(name: str, config_path: Path, *, as_json: bool) -> None:
    """Show what `systemctl start vllm@NAME` would run: limits in bytes, arguments, environment, and where each value comes from."""
    from vllm_safe.config.reader import load
    from vllm_safe.decide.limits import unit_of
    from vllm_safe.decide.prepare import known_model
    from vllm_safe.decide.show import decide_show, with_swap
    from vllm_safe.host.facts import read_host
    from vllm_safe.host.systemd import environment_of, show

    config, host = load(config_path), read_host()
    planned = with_swap(config, host)
    known_model(config, name)
    shown = show([unit_of(name)], ("Id", "Environment"))
    parts = decide_show(config, planned, name, environment_of(shown.get(unit_of(name), {})))
    if as_json:
        values = {part.title: {row.name: {"value": row.value, "origin": row.origin} for row in part.rows} for part in parts}
        click.echo(json.dumps({"name": name, **values}, indent=2, ensure_ascii=False))
        return
    if planned is not host:
        click.echo(f"{config.swap.file} is not on yet; the limits are those that a start has, which turns it on.")
    for part in parts:
        if part.rows:
            click.echo(click.style(part.title, bold=True))
            click.echo("\n".join(columns((row.name, row.text, row.origin) for row in part.rows)))
