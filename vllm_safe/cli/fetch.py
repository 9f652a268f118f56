"""`vllm-safe fetch NAME`: download the files of a model from the hub. Serving itself is offline."""

from __future__ import annotations

from pathlib import Path

import click

from vllm_safe.cli.main import config_option, dry_run_option, name_argument, need_root
from vllm_safe.cli.table import align_columns
from vllm_safe.common.errors import Failure
from vllm_safe.common.findings import Level
from vllm_safe.common.sizes import format_size
from vllm_safe.common.steps import carry_out
from vllm_safe.config.model_names import require_model
from vllm_safe.config.reader import load
from vllm_safe.decide.limits import decide_budget
from vllm_safe.host.host_facts import read_host
from vllm_safe.models.fetch_decision import FetchPlan, ModelDisk, count_files, find_model, plan_fetch, require_room
from vllm_safe.models.fetch_source import fetch_source, read_model_disk
from vllm_safe.models.hub_client import FetchStep, Source, list_files, require_engine
from vllm_safe.models.model_files import ModelFiles, read_model_files
from vllm_safe.sandbox.run_as_vllm import lock_unit
from vllm_safe.sandbox.unused_proxies import withheld_proxy_lines


@click.command(name="fetch")
@name_argument
@click.option(
    "--revision", metavar="REVISION", help="A branch, tag or commit of the model. Without it, a model that is complete is not updated."
)
@dry_run_option
@config_option
def command(name: str, revision: str | None, config_path: Path, *, dry_run: bool) -> None:
    """Download the files of the model NAME, all of them or none. After an interruption, run it again to resume."""
    config = load(config_path)
    model = require_model(config, name)
    if model.model is None:
        click.echo(f"{name} is a `command:` server: there is nothing to fetch")
        return
    files = read_model_files(model.model)
    if not files.repo:
        _print_folder(name, files)
        return
    if files.complete and not revision:
        _print_complete(name, files)
        return
    need_root()
    require_engine()
    limits = decide_budget(config, read_host()).of(name)
    source = fetch_source(config, name, files, revision, (limits.memory_max.value, limits.swap_max.value))
    with lock_unit(source.unit, f"fetching {files.repo}"):
        _fetch(source, read_model_disk(config), dry_run=dry_run)
    if not dry_run:
        _print_complete(name, read_model_files(model.model), verb="restart" if files.present else "start")


def _print_folder(name: str, files: ModelFiles) -> None:
    """Print that a folder named in the configuration is not fetched. Raises Failure if it cannot be served."""
    finding = find_model(name, files)
    if finding.level is Level.FAIL:
        raise Failure(finding.what, hint=finding.do_next)
    click.echo(f"{name} is served from the folder {files.folder}: there is nothing to fetch")


def _print_complete(name: str, files: ModelFiles, *, verb: str = "start") -> None:
    if files.commit:
        click.echo(f"{files.folder} is complete: {count_files(files.count)}, {format_size(files.size)}, revision {files.commit[:10]}")
        click.echo(f"To serve it: systemctl {verb} vllm@{name}   To update it: vllm-safe fetch {name} --revision main")
    else:
        click.echo(f"{files.folder} exists, and was not fetched by vllm-safe   To replace it: vllm-safe fetch {name} --revision main")


def _fetch(source: Source, room: ModelDisk, *, dry_run: bool) -> None:
    for line in withheld_proxy_lines():
        click.echo(line, err=True)
    plan = plan_fetch(source.asked.repo, *list_files(source))
    _show(plan)
    if warning := require_room(plan, room):
        click.echo(f"warning: {warning}", err=True)
    try:
        carry_out([FetchStep(source, plan)], dry_run=dry_run, say=click.echo)
    except KeyboardInterrupt:
        click.echo(f"\nDownloaded data is kept. To resume: {source.asked.command}", err=True)
        raise


def _show(plan: FetchPlan) -> None:
    click.echo(plan.summary)
    width = max(len(format_size(file.size)) for file in plan.files)
    notes = {file: "complete" if file.here == file.size else f"{format_size(file.here)} present" for file in plan.files if file.here}
    click.echo("\n".join(align_columns((format_size(file.size).rjust(width), file.name, notes.get(file, "")) for file in plan.files)))
    if plan.left_out:
        rest = format_size(sum(file.size for file in plan.left_out))
        click.echo(f"skipped, as vLLM does not read them: {count_files(len(plan.left_out))}, {rest}, such as {plan.left_out[0].name}")
