"""`vllm-safe install`: vLLM in its own venv, which is tried before it is used. The previous one is kept."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import click

from vllm_safe.cli.main import config_option, dry_run_option, need_root
from vllm_safe.common.errors import Misuse
from vllm_safe.common.steps import carry_out
from vllm_safe.common.systemctl import show_properties
from vllm_safe.config.reader import load
from vllm_safe.config.string_types import VERSION
from vllm_safe.engine.engine_facts import EngineFacts, read_engine
from vllm_safe.engine.engine_steps import (
    UNIT,
    engine_works,
)
from vllm_safe.engine.install_plan import InstallRequest, plan_install
from vllm_safe.sandbox.run_as_vllm import lock_unit


@click.command(name="install")
@click.option("--version", metavar="VERSION", help="The version, instead of engine.version in the configuration.")
@click.option("--reinstall", is_flag=True, help="Rebuild it even if it is installed and works.")
@click.option("--rollback", is_flag=True, help="Switch to the previous engine. A second time switches back.")
@click.option("--try", "only_try", is_flag=True, help="Only try the engine in use, once a GPU is available.")
@dry_run_option
@config_option
def command(  # noqa: PLR0913 -- each is an option
    version: str | None, config_path: Path, *, reinstall: bool, rollback: bool, only_try: bool, dry_run: bool
) -> None:
    """Install vLLM. The one in use stays until the new one works, and is then kept as the previous one.

    A driver older than the CUDA version of the wheels, or GPUs too old for it, are reported before anything is downloaded. Where no GPU
    is available yet, vLLM is installed untried, unless it would replace a vLLM that works. It is tried by the first start that becomes
    ready, or by `--try`.
    """
    if rollback and (version or reinstall):
        raise Misuse("--rollback goes back to the previous engine, whatever its version", hint="Leave out --version and --reinstall.")
    if only_try and (version or reinstall or rollback):
        raise Misuse("--try tries the engine in use, and installs nothing", hint="Leave out --version, --reinstall and --rollback.")
    if version and not re.fullmatch(VERSION, version):
        raise Misuse(f"{version!r} is not a version", hint="Give a version such as 0.32.0.")
    config = load(config_path)
    request = InstallRequest(config.engine, version, reinstall=reinstall, rollback=rollback, only_try=only_try)
    if dry_run:
        carry_out(plan_install(request, read_engine(), lambda _installed, _whole: True, click.echo), dry_run=True, say=click.echo)
        return
    need_root()
    with lock_unit(UNIT, "vllm-safe install"):
        facts = read_engine()
        steps = plan_install(request, facts, lambda installed, whole: engine_works(installed, facts, tried=whole), click.echo)
        try:
            carry_out(steps, dry_run=False)
        except KeyboardInterrupt:
            click.echo("\nThe engine in use is untouched, and downloaded data is kept. To resume, run the same command again.", err=True)
            raise
        after = read_engine()
        if after.current != facts.current:
            _print_done(after, config.models)
        elif only_try:
            click.echo(f"{after.current} works.")


def _print_done(facts: EngineFacts, names: Iterable[str]) -> None:
    """Print which engine is in use now, and which models still run on the previous one."""
    if facts.is_untried:
        click.echo(f"{facts.current} is in use, but untried. The first start with a GPU tries it. To try it now: vllm-safe install --try")
    else:
        click.echo(f"{facts.current} is in use.")
    if facts.previous:
        twin = " (an earlier build)" if str(facts.previous) == str(facts.current) else ""
        click.echo(f"{facts.previous}{twin} is kept. To go back to it: vllm-safe install --rollback")
    units = {name: f"vllm@{name}.service" for name in names}
    states = show_properties(units.values(), ("Id", "ActiveState"))
    for name, unit in units.items():
        if states.get(unit, {}).get("ActiveState") in {"active", "activating", "reloading"}:
            click.echo(f"{name} still runs on the previous engine. To switch: systemctl restart vllm@{name}")
