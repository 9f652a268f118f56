"""`vllm-safe config`: the configuration in force with where each value is from, or a commented sample."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import click

from vllm_safe.cli.main import config_option, json_option
from vllm_safe.cli.table import align_columns
from vllm_safe.common.errors import Misuse
from vllm_safe.config.reader import load
from vllm_safe.config.sample_config import sample_config as sample_text
from vllm_safe.decide.effective_settings import EffectiveSetting, as_yaml, effective_settings


@click.command(name="config")
@click.option("--sample", is_flag=True, help="Print a configuration with every setting and its explanation instead.")
@json_option
@config_option
def command(config_path: Path, *, sample: bool, as_json: bool) -> None:
    """Show the configuration that is in force, as YAML, with where each value is from: the file and its line, a profile, or the default.

    What a start makes of it on this machine is shown by `vllm-safe show NAME`.
    """
    if sample and as_json:
        raise Misuse("--sample prints YAML with comments; use it without --json")
    if sample:
        click.echo(sample_text(), nl=False)
        return
    settings = effective_settings(load(config_path))
    click.echo(json.dumps(_tree(settings), indent=2, ensure_ascii=False) if as_json else "\n".join(_lines(settings)))


def _tree(settings: Iterable[EffectiveSetting]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for setting in settings:
        *sections, name = setting.path
        place = tree
        for section in sections:
            place = place.setdefault(section, {})
        place[name] = {"value": setting.value, "origin": setting.origin}
    return tree


def _lines(settings: Iterable[EffectiveSetting]) -> Iterator[str]:
    """Yield one section after the other, with the origins as comments in a column of their own."""
    for number, (_, section) in enumerate(groupby(settings, key=lambda setting: setting.path[0])):
        rows: list[tuple[str, str]] = []
        above: tuple[str, ...] = ()
        for setting in section:
            *sections, name = setting.path
            for depth, title in enumerate(sections):
                if tuple(sections[: depth + 1]) != above[: depth + 1]:
                    rows.append((f"{'  ' * depth}{as_yaml(title)}:", ""))
            above = tuple(sections)
            rows.append((f"{'  ' * len(sections)}{as_yaml(name)}: {setting.text}", f"# {setting.origin}"))
        if number:
            yield ""
        yield from align_columns(rows, indent="")
