"""`vllm-safe check [NAME]`: every precondition and running model, each as pass, warn or fail, with the next action."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import click

from vllm_safe.check.inspection import run_checks
from vllm_safe.cli.main import config_option, json_option, optional_name_argument
from vllm_safe.common.errors import EXIT_FAILED
from vllm_safe.common.findings import Finding
from vllm_safe.config.model_names import require_model
from vllm_safe.config.reader import load
from vllm_safe.host.host_facts import read_host

ROOT = Path("/")  # tests have machines of their own
_COLOURS = {"pass": "green", "warn": "yellow", "fail": "red"}


@click.command(name="check")
@optional_name_argument
@click.option("--disk", "measure", is_flag=True, help="Read the largest file of each model for 4 s, and say how fast its disk is.")
@json_option
@config_option
def command(name: str | None, config_path: Path, *, as_json: bool, measure: bool) -> int:
    """Check the configuration, this machine and each model, or only the model NAME, and say what to do next. Changes nothing.

    Exit code: 0 if nothing failed, 1 if something failed, 2 if the configuration has an error.
    """
    config = load(config_path)
    if name is not None:
        require_model(config, name)
    host = read_host(ROOT, behind=config.swap.file)
    found = run_checks(config, host, ROOT, only=name, measure=measure)
    worst = any(finding.level == "fail" for findings in found.values() for finding in findings)
    if as_json:
        values = {part: [vars(finding) for finding in findings] for part, findings in found.items()}
        click.echo(json.dumps(values, indent=2, ensure_ascii=False))
    else:
        _print(found)
    return EXIT_FAILED if worst else 0


def _print(found: Mapping[str, tuple[Finding, ...]]) -> None:
    for part, findings in found.items():
        click.echo(click.style(part, bold=True))
        for finding in findings:
            click.echo(f"  {click.style(finding.level, fg=_COLOURS[finding.level])}  {finding.what}")
            if finding.do_next:
                click.echo(f"        {finding.do_next}")
