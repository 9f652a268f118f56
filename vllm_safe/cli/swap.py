"""vllm-safe swap create|status|remove."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from vllm_safe.cli.main import SuggestingGroup, config_option, dry_run_option, json_option, need_root
from vllm_safe.common.errors import Failure
from vllm_safe.common.notify import notify
from vllm_safe.common.run_lock import hold_lock
from vllm_safe.common.sizes import format_size
from vllm_safe.common.steps import carry_out
from vllm_safe.config import settings
from vllm_safe.config.reader import load
from vllm_safe.host.host_facts import read_host
from vllm_safe.swap.swap_decision import decide_remove, decide_swap
from vllm_safe.swap.swap_status import read_swap_status, swap_as_lines
from vllm_safe.swap.swapfile_facts import read_swap


@click.group(cls=SuggestingGroup)
def command() -> None:
    """Create, show or remove the swapfile that section `swap` of the config describes."""


@command.command()
@config_option
@dry_run_option
def create(config_path: Path, *, dry_run: bool) -> None:
    """Make the swapfile and turn it on; nothing if it is on.

    A new `swap.size` or `swap.file` is applied: the new file is made, then the old one is turned off and deleted.
    """
    if not dry_run:
        need_root()
    swap = load(config_path).swap
    with _one_run(dry_run=dry_run):
        host = read_host(behind=swap.file)
        steps = decide_swap(swap, host, read_swap(swap.file, host))
        _carry_out(steps, dry_run=dry_run)
        if dry_run and steps:
            return
        host = read_host() if steps else host
        total = f"{format_size(host.swap)} of swap are on"
        _say(f"{total} (swap.size is none: it is left as it is)" if swap.size is None else total)


@command.command()
@config_option
@json_option
def status(config_path: Path, *, as_json: bool) -> None:
    """Show the swap that is on, and what `create` would do."""
    answer = read_swap_status(*_swap_or_default(config_path))
    if as_json:
        click.echo(json.dumps(answer, indent=2))
    else:
        click.echo("\n".join(swap_as_lines(answer)))


@command.command()
@config_option
@dry_run_option
def remove(config_path: Path, *, dry_run: bool) -> None:
    """Turn off and delete the swapfile, if its content fits in RAM.

    Other swap is left as it is. Needs no valid config: a swapfile of ours that is on is found by its label, one that is off at the
    configured or the default path.
    """
    if not dry_run:
        need_root()
    swap, problem = _swap_or_default(config_path)
    if problem:
        click.echo(f"vllm-safe: without the config: {problem.splitlines()[0]}", err=True)
    with _one_run(dry_run=dry_run):
        host = read_host(behind=swap.file)
        facts = read_swap(swap.file, host)
        steps = decide_remove(host, facts)
        _carry_out(steps, dry_run=dry_run)
        for file in facts.files:
            if file.foreign and file.path == facts.path:
                click.echo(f"left as it is: {file.path} ({file.foreign})")
        if not steps:
            click.echo("there is no swapfile of vllm-safe")


def _swap_or_default(config_path: Path) -> tuple[settings.Swap, str]:
    """The section `swap`, or its defaults and what is wrong with the config."""
    try:
        return load(config_path).swap, ""
    except Failure as failure:
        return settings.Swap(), failure.message


@contextmanager
def _one_run(*, dry_run: bool) -> Iterator[None]:
    """Alone, unless nothing is changed; under systemd the reason of a failure becomes the status of the unit."""
    if dry_run:
        yield
        return
    try:
        with hold_lock("swap", lambda: _say("waiting for another `vllm-safe swap` to end")):
            yield
    except Failure as failure:
        notify(STATUS=failure.message)
        raise


def _carry_out(steps: tuple[Any, ...], *, dry_run: bool) -> None:
    for step in steps:
        if not dry_run:
            _say(step.describe())
        carry_out((step,), dry_run=dry_run, say=click.echo)


def _say(text: str) -> None:
    notify(STATUS=text)
    click.echo(text)
