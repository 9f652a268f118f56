"""`vllm-safe plan MODEL`: whether a model would start, before a byte of it is loaded."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

import click
import yaml

from vllm_safe.apply.situation import read_units
from vllm_safe.cli.main import config_option, json_option, model_names
from vllm_safe.cli.table import align_columns
from vllm_safe.common.errors import EXIT_FAILED, Failure, Misuse
from vllm_safe.common.systemctl import environment_of
from vllm_safe.config.arguments import SHORT_OPTIONS
from vllm_safe.config.reader import DEFAULT_PATH, load
from vllm_safe.config.settings import Config
from vllm_safe.config.string_types import is_hub_id
from vllm_safe.decide.limits import decide_budget, unit_of
from vllm_safe.decide.plan_inputs import host_limits, planned_server
from vllm_safe.decide.serve_command import decide_server
from vllm_safe.decide.server_environment import forks_workers
from vllm_safe.decide.show_rows import with_swap
from vllm_safe.driver.driver_facts import read_driver
from vllm_safe.host.host_facts import Host, read_host
from vllm_safe.models.fetch_source import plan_source
from vllm_safe.models.hub_client import ask_hub, require_engine
from vllm_safe.models.hub_failure import WITHOUT_HUB
from vllm_safe.models.model_files import read_model_files
from vllm_safe.plan.gpu_list import parse_gpus
from vllm_safe.plan.headers_facts import StoredModel, read_hub_files, read_stored_model
from vllm_safe.plan.host_needs import HostLimits
from vllm_safe.plan.plan_facts import PlanFacts, describe_card, read_plan_facts
from vllm_safe.plan.plan_text import change_lines, describe_cards, paste_lines, plan_heading, plan_object, plan_rows
from vllm_safe.plan.serving import PLANNED_OPTIONS, Card, read_serving
from vllm_safe.plan.start_plan import StartPlan, decide_start_plan
from vllm_safe.sandbox.run_as_vllm import lock_unit
from vllm_safe.sandbox.unused_proxies import withheld_proxy_lines

_MOST_CHANGES = 4  # that are printed
_ALIKE = 0.9  # from 0 to 1: max-modle-len is like max-model-len; ec-transfer-config is another option than kv-transfer-config
_FOLDER_HINT = "For a folder with a config.json: vllm-safe plan ./FOLDER"


@dataclass(frozen=True)
class _Wanted:
    """What the command line asks for. given: options of `vllm serve`; cards: those to plan for, or None for this machine's."""

    model: str
    given: Mapping[str, Any]
    cards: tuple[Card, ...] | None
    config_path: Path
    offline: bool


@click.command(name="plan")
@click.argument("model", shell_complete=model_names)
@click.option("--gpus", metavar="TEXT", help="Plan for these GPUs instead of this machine's, such as '8 x 12GiB sm8.6'.")
@click.option(
    "--set", "options", multiple=True, metavar="OPTION=VALUE", help="An option of vllm serve, as in the setting args. Can be repeated."
)
@click.option("--fit", is_flag=True, help="Print the arguments for the longest context that fits.")
@click.option("--offline", is_flag=True, help="Do not ask the hub about a model that was not fetched.")
@json_option
@config_option
def command(  # noqa: PLR0913 -- each is an option
    model: str, config_path: Path, gpus: str | None, options: tuple[str, ...], *, fit: bool, offline: bool, as_json: bool
) -> int:
    """Say whether MODEL would start, and how much it could serve, without loading it. Changes nothing.

    MODEL is a model of the configuration, or a folder with a config.json, or a model of the hub (ORG/NAME). Its weight files are not
    needed; where they are, their headers are read. Of a model that was not fetched, the hub is asked for config.json and for these headers:
    a few megabytes at most, which are not kept. That needs root, an engine and a network. After a start, the figures are those that vLLM
    reported then.

    --json prints an object with these keys: starts (true, false, or null where it is not certain), reason, source (where what
    is known of the model comes from: "files" are its weight files, "config.json" is that file alone, or "hub"), weights_bytes_per_gpu and
    kv_bytes_per_gpu (a list, in the order of the GPUs), kv_tokens, longest_context, requests_at_once, host_bytes, shared_memory_bytes,
    load_seconds (null where the pace of the disk is not known), exact (those of these keys that are no estimates), unknown, lines,
    changes, fit and notes.

    Exit code: 0 if it starts or that is not certain, 1 if it does not start or its files cannot be read, 2 if an argument has an error.
    """
    wanted = _Wanted(model, _parse_options(options), None if gpus is None else parse_gpus(gpus), config_path, offline)
    configured = None if _is_folder(model) else _configured(config_path, model)
    facts, limits = _read_configured(wanted, *configured) if configured else _read_other(wanted)
    whole = decide_start_plan(model, facts, limits, fit=fit)
    if as_json:
        click.echo(json.dumps(plan_object(whole), indent=2, ensure_ascii=False))
    else:
        _print(whole, f"models.{model}" if configured else "models.NAME", fit=fit)
    return EXIT_FAILED if whole.starts is False else 0


def _parse_options(options: tuple[str, ...]) -> dict[str, Any]:
    """Return the options of `vllm serve` that the command line sets, with the types that YAML would give them."""
    found = {}
    for option in options:
        name, equals, value = option.partition("=")
        name = name.strip().lstrip("-").replace("_", "-")
        name = SHORT_OPTIONS.get(name, name)
        if not re.fullmatch(r"[a-z][a-z0-9-]*", name):
            raise Misuse(f"--set {option}: the option has no name", hint="Such as: --set max-model-len=8192")
        if name not in PLANNED_OPTIONS and (meant := get_close_matches(name, PLANNED_OPTIONS, 1, _ALIKE)):
            raise Misuse(f"--set {option}: vLLM has no option {name}", hint=f"Probably {meant[0]} is meant.")
        try:
            found[name] = yaml.safe_load(value) if equals else True
        except yaml.YAMLError:
            found[name] = value
    return found


def _is_folder(model: str) -> bool:
    return model.startswith(("/", ".")) or "/" in model


def _configured(path: Path, name: str) -> tuple[Config, Host]:
    if not path.exists():
        raise Misuse(f"there is no model {name}, since there is no configuration {path}", hint=_FOLDER_HINT)
    config = load(path)
    if name not in config.models:
        known = ", ".join(config.models) or "none"
        raise Misuse(f"there is no model {name} in {path}, which has: {known}", hint=_FOLDER_HINT)
    return config, read_host()


def _read_configured(wanted: _Wanted, config: Config, host: Host) -> tuple[PlanFacts, HostLimits]:
    name = wanted.model
    model = config.models[name].model
    if model is None:
        raise Misuse(f"models.{name} is a `command:` server: what it needs is not known", hint="Plans are for models that vLLM serves.")
    if config.engine.package != "vllm":
        raise Misuse(f"models.{name} runs on the CPU ({config.engine.package})", hint="Plans are for models that vLLM serves on GPUs.")
    host = with_swap(config, host)
    unit = unit_of(name)
    server = decide_server(config, host, name, environment_of(read_units(unit).get(unit, {})))
    own_cards = () if wanted.cards is not None else read_driver().nvml.cards
    facts = read_plan_facts(planned_server(name, model, server, wanted.given), own_cards, stored=partial(_read_model, wanted))
    return _with_cards(facts, wanted.cards), host_limits(decide_budget(config, host).of(name), host)


def _read_other(wanted: _Wanted) -> tuple[PlanFacts, HostLimits]:
    model, cards = wanted.model, wanted.cards
    if cards is None:
        cards = tuple(describe_card(card, card.used) for card in read_driver().nvml.cards)
    serving = read_serving(wanted.given)
    is_folder = model.startswith((".", "/")) or Path(model).is_dir()
    stored = _read_model(wanted, str(Path(model).absolute()) if is_folder else model)
    return _with_cards(PlanFacts(stored, serving, (), forked=forks_workers(read_host(), serving.ranks)), cards), HostLimits()


def _read_model(wanted: _Wanted, model: str) -> StoredModel:
    """Return what is known of the files of a model: from its folder, or, where it was not fetched, from the hub."""
    if wanted.offline or not is_hub_id(model) or read_model_files(model).present:
        return read_stored_model(model)
    if os.geteuid() != 0:
        raise Failure(f"{model} is not fetched, and only root may have the hub asked about it", hint=f"Run it with sudo.   {WITHOUT_HUB}")
    require_engine(f"ask the hub about {model}, which is not fetched", WITHOUT_HUB)
    path = wanted.config_path
    config = load(path) if path != DEFAULT_PATH or path.exists() else Config(source=str(path))
    source = plan_source(config, wanted.model, model)
    for line in withheld_proxy_lines():
        click.echo(line, err=True)
    click.echo(f"{model} is not fetched: asking {source.asked.hub} about it", err=True)
    with lock_unit(source.unit, f"asking about {model}"):
        described = ask_hub(source)
    return read_hub_files(described, source.asked.page, described.commit)


def _with_cards(facts: PlanFacts, cards: tuple[Card, ...] | None) -> PlanFacts:
    """Return the facts with other GPUs. The reports of earlier starts do not apply to these; the pace of the disk does."""
    if cards is not None:
        facts = replace(facts, cards=cards * facts.machines, past=(), unread="", unordered=False)
    if not facts.cards:
        raise Failure("no GPU is known: the driver shows none", hint="Say which to plan for, such as: --gpus '8 x 12GiB sm8.6'")
    return facts


def _print(whole: StartPlan, path: str, *, fit: bool) -> None:
    click.echo(click.style(plan_heading(whole), bold=True))
    if whole.cards:
        click.echo(f"  for {describe_cards(whole.cards)}; ~ is an estimate")
    click.echo("\n".join(align_columns(plan_rows(whole))))
    for note in whole.notes:
        click.echo(f"  {note}")
    if whole.host.problem:
        click.echo(f"  {whole.host.hint}")
    if whole.changes:
        click.echo("\nWhat would make it start: one of these")
        for change in whole.changes[:_MOST_CHANGES]:
            click.echo("\n".join([f"  {change.cost}", *(f"    {line}" for line in change_lines(change, path))]))
    if fit:
        click.echo("\nThe longest context that fits" if whole.fit else "\nNo context fits.")
        for line in paste_lines(whole.fit) if whole.fit else ():
            click.echo(f"  {line}")
