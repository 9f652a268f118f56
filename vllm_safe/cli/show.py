"""`vllm-safe show NAME`: the command and limits of a start, with the origin of each value."""

from __future__ import annotations

import json
from pathlib import Path

import click

from vllm_safe.cli.main import config_option, json_option, name_argument
from vllm_safe.cli.table import align_columns
from vllm_safe.common.systemctl import environment_of, show_properties
from vllm_safe.config.model_names import require_model
from vllm_safe.config.reader import load
from vllm_safe.decide.limits import unit_of
from vllm_safe.decide.node_options import find_rank
from vllm_safe.decide.node_rows import decide_node_rows
from vllm_safe.decide.show_rows import decide_show, with_swap
from vllm_safe.host.host_facts import read_host
from vllm_safe.host.node_facts import read_port_range, read_way
from vllm_safe.power.power_facts import read_power


@click.command(name="show")
@name_argument
@json_option
@config_option
def command(name: str, config_path: Path, *, as_json: bool) -> None:
    """Show what `systemctl start vllm@NAME` would run: limits in bytes, arguments, environment, and where each value comes from."""
    config, host = load(config_path), read_host()
    planned = with_swap(config, host)
    require_model(config, name)
    shown = show_properties([unit_of(name)], ("Id", "Environment"))
    power = read_power() if config.gpu.power_limit else None
    nodes = config.models[name].nodes or ()
    rank = find_rank(config.models[name], host.name)
    ways = tuple(read_way(node) for place, node in enumerate(nodes) if place != rank)
    between = decide_node_rows(config, name, rank, ways, read_port_range()) if nodes else None
    parts = (*decide_show(config, planned, name, environment_of(shown.get(unit_of(name), {})), power), *((between,) if between else ()))
    if as_json:
        values = {part.title: {row.name: {"value": row.value, "origin": row.origin} for row in part.rows} for part in parts}
        click.echo(json.dumps({"name": name, **values}, indent=2, ensure_ascii=False))
        return
    if planned is not host:
        click.echo(f"{config.swap.file} is not on yet; a start turns it on, and the limits below include it.")
    for part in parts:
        if part.rows:
            click.echo(click.style(part.title, bold=True))
            click.echo("\n".join(align_columns((row.name, row.text, row.origin) for row in part.rows)))
