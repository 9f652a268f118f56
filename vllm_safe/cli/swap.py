"""`vllm-safe swap create`, `status` and `remove`."""

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
    """Create, show or remove the swapfile that the section `swap` of the configuration describes."""


@command.command()
@config_option
@dry_run_option
def create(config_path: Path, *, dry_run: bool) -> None:
    """Create the swapfile and turn it on, unless it is on.

    A change of `swap.size` or `swap.file` is applied: the new file is created, then the old one is turned off and deleted.
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
        _report(f"{total} (swap.size is none: swap is not managed)" if swap.size is None else total)


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

    Other swap is not changed. No valid configuration is needed: a swapfile of vllm-safe that is on is found by its label, and one that is
    off at the configured or the default path.
    """
    if not dry_run:
        need_root()
    swap, problem = _swap_or_default(config_path)
    if problem:
        click.echo(f"vllm-safe: continuing without the configuration: {problem.splitlines()[0]}", err=True)
    with _one_run(dry_run=dry_run):
        host = read_host(behind=swap.file)
        facts = read_swap(swap.file, host)
        steps = decide_remove(host, facts)
        _carry_out(steps, dry_run=dry_run)
        for file in facts.files:
            if file.foreign and file.path == facts.path:
                click.echo(f"not removed: {file.path} ({file.foreign})")
        if not steps:
            click.echo("there is no swapfile that vllm-safe created")


def _swap_or_default(config_path: Path) -> tuple[settings.Swap, str]:
    """Return the section `swap` and "", or its defaults and the error in the configuration."""
    try:
        return load(config_path).swap, ""
    except Failure as failure:
        return settings.Swap(), failure.message


@contextmanager
def _one_run(*, dry_run: bool) -> Iterator[None]:
    """Hold the lock for the only run, except in a dry run. Under systemd the reason of a failure becomes the status of the unit."""
    if dry_run:
        yield
        return
    try:
        with hold_lock("swap", lambda: _report("waiting for another `vllm-safe swap` to end")):
            yield
    except Failure as failure:
        notify(STATUS=failure.message)
        raise


def _carry_out(steps: tuple[Any, ...], *, dry_run: bool) -> None:
    for step in steps:
        if not dry_run:
            _report(step.describe())
        carry_out((step,), dry_run=dry_run, say=click.echo)


def _report(text: str) -> None:
    notify(STATUS=text)
    click.echo(text)
