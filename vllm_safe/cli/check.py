"""`vllm-safe check`: every precondition and what runs, each line pass, warn or fail, with what to do next."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import click

from vllm_safe.apply.situation import read_situation
from vllm_safe.cli.main import config_option, json_option
from vllm_safe.common.errors import EXIT_FAILED, Failure
from vllm_safe.common.findings import Finding
from vllm_safe.common.systemctl import show_properties
from vllm_safe.config.reader import load
from vllm_safe.config.settings import Config
from vllm_safe.decide.checks import EARLYOOM, MachineFacts, check_machine, check_running_model
from vllm_safe.decide.limits import EACH_UNIT, decide_budget, unit_of
from vllm_safe.decide.protect import UNITS
from vllm_safe.decide.serve_command import server_url
from vllm_safe.decide.start_checks import SWAP_SERVICE
from vllm_safe.driver.driver_facts import read_driver
from vllm_safe.earlyoom.earlyoom_defaults import admin_arguments
from vllm_safe.engine.engine_decision import cuda_of
from vllm_safe.engine.requirement_locks import read_lock
from vllm_safe.host import check_facts
from vllm_safe.host.check_facts import Inspection
from vllm_safe.host.host_facts import Host, read_host
from vllm_safe.host.start_facts import read_key
from vllm_safe.swap.swap_decision import decide_swap
from vllm_safe.swap.swapfile_facts import read_swap

MACHINE = "this machine"
_COLOURS = {"pass": "green", "warn": "yellow", "fail": "red"}


@click.command(name="check")
@json_option
@config_option
def command(config_path: Path, *, as_json: bool) -> int:
    """Check the configuration, this machine and each model, and say what to do next. Changes nothing.

    Exit code: 0 if nothing failed, 1 if something did, 2 if the configuration has a mistake.
    """
    config = load(config_path)
    host = read_host(behind=config.swap.file)
    found = _check(config, host)
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


def _check(config: Config, host: Host) -> dict[str, tuple[Finding, ...]]:
    """The findings for the machine, then for each model; what was said once is not said of each model again."""
    seen, budget = _inspect(config), decide_budget(config, host)
    found = {MACHINE: check_machine(MachineFacts(config, host, budget, seen, _swap_refused(config, host)))}
    said = set(found[MACHINE])
    for name in config.models:
        own = check_running_model(read_situation(config, host, budget, name), seen)
        found[name] = tuple(finding for finding in own if finding not in said)
        said.update(own)
    return found


def _swap_refused(config: Config, host: Host) -> Failure | None:
    try:
        decide_swap(config.swap, host, read_swap(config.swap.file, host))
    except Failure as failure:
        return failure
    return None


def _inspect(config: Config) -> Inspection:
    names = {name: unit_of(name) for name in config.models}
    properties = ("Id", "LoadState", "ActiveState", "MainPID", "StatusText", "MemoryMin", EACH_UNIT, "NRestarts")
    units = show_properties([EARLYOOM, SWAP_SERVICE, *UNITS.values(), *names.values()], properties)
    running = check_facts.active_units(units, names.values())
    served = {}
    for name, model in config.models.items():
        if names[name] in running and model.command is None:
            key = read_key(model.api_key_file) if model.api_key_file else None
            if not (key and key.hidden):
                served[name] = check_facts.ask_models(server_url(model, "/v1/models"), key.text if key else "")
    needs_cards = config.engine.package == "vllm" and any(model.command is None for model in config.models.values())
    return check_facts.Inspection(
        hard_disks=check_facts.read_hard_disks(),
        units=units,
        earlyoom=check_facts.read_earlyoom_arguments(int(units.get(EARLYOOM, {}).get("MainPID") or 0)),
        admin_earlyoom=admin_arguments(),
        overcommit=check_facts.read_overcommit(),
        compiler=check_facts.has_compiler(),
        headers=check_facts.has_headers(),
        served=served,
        driver=read_driver() if needs_cards else None,
        cuda=cuda_of("vllm", config.engine.version, read_lock("vllm")) if needs_cards else None,
    )
