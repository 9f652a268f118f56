"""`vllm-safe install`: vLLM into a venv of its own, tried before it is used; the one before it is kept."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vllm_safe.cli.main import config_option, dry_run_option, need_root

if TYPE_CHECKING:
    from vllm_safe.apply.engine import EngineStep
    from vllm_safe.config.settings import Engine
    from vllm_safe.host.engine import EngineFacts, Installed


@click.command(name="install")
@click.option("--version", metavar="VERSION", help="Another version than engine.version of the configuration.")
@click.option("--reinstall", is_flag=True, help="Build it again although it is there and works.")
@click.option("--rollback", is_flag=True, help="Go back to the engine that was used before; once more comes forward again.")
@dry_run_option
@config_option
def command(version: str | None, config_path: Path, *, reinstall: bool, rollback: bool, dry_run: bool) -> None:
    """Install vLLM. The one in use stays until the new one works, and is kept beside it."""
    from vllm_safe.apply.as_vllm import alone
    from vllm_safe.apply.engine import UNIT, works
    from vllm_safe.apply.steps import carry_out
    from vllm_safe.config.reader import load
    from vllm_safe.config.texts import VERSION
    from vllm_safe.errors import Misuse
    from vllm_safe.host.engine import read_engine

    if rollback and (version or reinstall):
        raise Misuse("--rollback goes back to the previous engine, whatever its version", hint="Leave out --version and --reinstall.")
    if version and not re.fullmatch(VERSION, version):
        raise Misuse(f"{version!r} is no version", hint="One such as 0.32.0")
    config = load(config_path)
    wish = _Wish(config.engine, version, reinstall=reinstall, rollback=rollback)
    if dry_run:
        carry_out(_steps(wish, read_engine(), lambda _: True), dry_run=True, say=click.echo)
        return
    need_root()
    with alone(UNIT, "vllm-safe install"):
        facts = read_engine()
        steps = _steps(wish, facts, lambda installed: works(installed, facts))
        try:
            carry_out(steps, dry_run=False)
        except KeyboardInterrupt:
            click.echo("\nThe engine in use is untouched, and what was downloaded is kept. To go on, run the same command again.", err=True)
            raise
        if steps:
            _tell_done(read_engine(), config.models)


@dataclass(frozen=True)
class _Wish:
    """What was asked for."""

    engine: Engine
    version: str | None
    reinstall: bool
    rollback: bool


def _steps(wish: _Wish, facts: EngineFacts, is_working: Callable[[Installed], bool]) -> tuple[EngineStep, ...]:
    """What there is to do; nothing if what is asked for is in use and works."""
    from vllm_safe.apply.engine import exchange_steps, install_steps, read_place
    from vllm_safe.decide.engine import decide_install, is_wanted, previous_of
    from vllm_safe.decide.lock import read_lock

    if wish.rollback:
        return exchange_steps(previous_of(facts), facts)
    version = wish.version or wish.engine.version
    if not wish.reinstall and facts.current and is_wanted(facts.current, wish.engine, version):
        if is_working(facts.current):
            click.echo(f"{facts.current} is installed and works. To build it again: vllm-safe install --reinstall")
            return ()
        click.echo(f"{facts.current} is installed, but does not work: building it again.", err=True)
        facts = replace(facts, current=None)  # not worth keeping as the previous one
    elif not wish.reinstall and facts.previous and is_wanted(facts.previous, wish.engine, version):
        click.echo(f"{facts.previous} is there as the previous engine.")
        return exchange_steps(facts.previous, facts)
    locks = {name: read_lock(name) for name in (wish.engine.package, "uv")}
    installation = decide_install(wish.engine, version, facts, read_place(facts, wish.engine.find_links), locks)
    if installation.lock is None:
        click.echo(f"{installation} is not what vllm-safe was tested with on this machine: its parts are resolved and hashed now.")
    return install_steps(installation, facts, locks["uv"])


def _tell_done(facts: EngineFacts, names: Iterable[str]) -> None:
    """What is in use now, and what still runs on the engine before."""
    from vllm_safe.host.systemd import show

    click.echo(f"{facts.current} is in use.")
    if facts.previous:
        twin = " (an earlier build)" if str(facts.previous) == str(facts.current) else ""
        click.echo(f"{facts.previous}{twin} is kept: vllm-safe install --rollback goes back to it.")
    units = {name: f"vllm@{name}.service" for name in names}
    states = show(units.values(), ("Id", "ActiveState"))
    for name, unit in units.items():
        if states.get(unit, {}).get("ActiveState") in {"active", "activating", "reloading"}:
            click.echo(f"{name} still runs on the engine that it was started with: systemctl restart vllm@{name}")
