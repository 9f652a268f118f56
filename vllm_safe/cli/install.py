"""`vllm-safe install`: vLLM into a venv of its own, tried before it is used; the one before it is kept."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import click

from vllm_safe.cli.main import config_option, dry_run_option, need_root
from vllm_safe.common.errors import Failure, Misuse
from vllm_safe.common.findings import Level
from vllm_safe.common.steps import Step, carry_out
from vllm_safe.common.systemctl import show_properties
from vllm_safe.config.reader import load
from vllm_safe.config.settings import Engine
from vllm_safe.config.string_types import VERSION
from vllm_safe.driver.driver_facts import read_driver
from vllm_safe.engine.engine_decision import Trial, current_of, decide_install, decide_trial, is_wanted, previous_of, require_no_loss
from vllm_safe.engine.engine_facts import EngineFacts, Installed, read_engine
from vllm_safe.engine.engine_steps import (
    UNIT,
    engine_works,
    exchange_steps,
    install_steps,
    mark_tried_steps,
    read_install_target,
    try_steps,
)
from vllm_safe.engine.requirement_locks import read_lock
from vllm_safe.sandbox.run_as_vllm import lock_unit
from vllm_safe.sandbox.unused_proxies import warn_of_withheld_proxies


@click.command(name="install")
@click.option("--version", metavar="VERSION", help="Another version than engine.version of the configuration.")
@click.option("--reinstall", is_flag=True, help="Build it again although it is there and works.")
@click.option("--rollback", is_flag=True, help="Go back to the engine that was used before; once more comes forward again.")
@click.option("--try", "only_try", is_flag=True, help="Only try the engine in use, now that a card answers.")
@dry_run_option
@config_option
def command(  # noqa: PLR0913 -- each is an option
    version: str | None, config_path: Path, *, reinstall: bool, rollback: bool, only_try: bool, dry_run: bool
) -> None:
    """Install vLLM. The one in use stays until the new one works, and is kept beside it.

    What can never work is said before anything is downloaded: a driver older than the wheels' CUDA, or cards too old for it. Where
    no card answers yet, vLLM is put in place untried, unless a vLLM that works would have to make room for it. The first start that
    gets ready is its trial, or `--try`.
    """
    if rollback and (version or reinstall):
        raise Misuse("--rollback goes back to the previous engine, whatever its version", hint="Leave out --version and --reinstall.")
    if only_try and (version or reinstall or rollback):
        raise Misuse("--try tries the engine in use, and installs nothing", hint="Leave out --version, --reinstall and --rollback.")
    if version and not re.fullmatch(VERSION, version):
        raise Misuse(f"{version!r} is no version", hint="One such as 0.32.0")
    config = load(config_path)
    wish = _Wish(config.engine, version, reinstall=reinstall, rollback=rollback, only_try=only_try)
    if dry_run:
        carry_out(_steps(wish, read_engine(), lambda _installed, _whole: True), dry_run=True, say=click.echo)
        return
    need_root()
    with lock_unit(UNIT, "vllm-safe install"):
        facts = read_engine()
        steps = _steps(wish, facts, lambda installed, whole: engine_works(installed, facts, tried=whole))
        try:
            carry_out(steps, dry_run=False)
        except KeyboardInterrupt:
            click.echo("\nThe engine in use is untouched, and what was downloaded is kept. To go on, run the same command again.", err=True)
            raise
        after = read_engine()
        if after.current != facts.current:
            _tell_done(after, config.models)
        elif only_try:
            click.echo(f"{after.current} works.")


@dataclass(frozen=True)
class _Wish:
    """What was asked for."""

    engine: Engine
    version: str | None
    reinstall: bool
    rollback: bool
    only_try: bool


def _steps(wish: _Wish, facts: EngineFacts, is_working: Callable[[Installed, bool], bool]) -> tuple[Step, ...]:
    """What there is to do; nothing if what is asked for is in use and works."""
    if wish.only_try:
        return _try(facts)
    if wish.rollback:
        previous = previous_of(facts)
        return exchange_steps(previous, facts, tried=_trial(previous.package, previous.version).possible)
    version = wish.version or wish.engine.version
    trial = _trial(wish.engine.package, version)
    if not wish.reinstall and facts.current and is_wanted(facts.current, wish.engine, version):
        if is_working(facts.current, trial.possible):
            return _keep(facts.current, facts, trial)
        click.echo(f"{facts.current} is installed, but does not work: building it again.", err=True)
        facts = replace(facts, current=None)  # not worth keeping as the previous one
    elif not wish.reinstall and facts.previous and is_wanted(facts.previous, wish.engine, version):
        if facts.previous.folder in facts.untried:
            require_no_loss(str(facts.previous), wish.engine, facts, trial)
        click.echo(f"{facts.previous} is there as the previous engine.")
        return exchange_steps(facts.previous, facts, tried=trial.possible)
    locks = {name: read_lock(name) for name in (wish.engine.package, "uv")}
    place = replace(read_install_target(facts, wish.engine.find_links), trial=trial)
    installation = decide_install(wish.engine, version, facts, place, locks)
    if not installation.sources.offline:
        warn_of_withheld_proxies()
    if installation.lock is None:
        click.echo(f"{installation} is not what vllm-safe was tested with on this machine: its parts are resolved and hashed now.")
    if not installation.tried:
        click.echo(f"{installation} is put in place untried: no card answers.")
    return install_steps(installation, facts, locks["uv"], time.time())


def _try(facts: EngineFacts) -> tuple[Step, ...]:
    """The trial of the engine in use."""
    current = current_of(facts)
    trial = _trial(current.package, current.version, say=False)
    if trial.cards and not trial.possible:
        raise Failure(f"{current} cannot be tried: {trial.cards.what}", hint=trial.cards.do_next)
    return try_steps(current, facts, tried=True)


def _keep(current: Installed, facts: EngineFacts, trial: Trial) -> tuple[Step, ...]:
    """What is there is not installed again; if it was tried just now, that is written down."""
    if facts.is_untried and not trial.possible:
        click.echo(f"{current} is installed, and untried. Once a card answers: vllm-safe install --try")
        return ()
    click.echo(f"{current} is installed and works. To build it again: vllm-safe install --reinstall")
    return mark_tried_steps(current, facts)


def _trial(package: str, version: str, *, say: bool = True) -> Trial:
    """Whether an engine can be tried now; what is wrong with the cards is said. Raises Failure if it can never work on them."""
    trial = decide_trial(package, version, read_lock(package), read_driver() if package == "vllm" else None)
    if say and trial.cards and trial.cards.level is Level.WARN:
        click.echo(f"warning: {trial.cards.what}\n  {trial.cards.do_next}", err=True)
    return trial


def _tell_done(facts: EngineFacts, names: Iterable[str]) -> None:
    """What is in use now, and what still runs on the engine before."""
    if facts.is_untried:
        click.echo(f"{facts.current} is in use, and untried. Once a card answers, the first start tries it, or: vllm-safe install --try")
    else:
        click.echo(f"{facts.current} is in use.")
    if facts.previous:
        twin = " (an earlier build)" if str(facts.previous) == str(facts.current) else ""
        click.echo(f"{facts.previous}{twin} is kept: vllm-safe install --rollback goes back to it.")
    units = {name: f"vllm@{name}.service" for name in names}
    states = show_properties(units.values(), ("Id", "ActiveState"))
    for name, unit in units.items():
        if states.get(unit, {}).get("ActiveState") in {"active", "activating", "reloading"}:
            click.echo(f"{name} still runs on the engine that it was started with: systemctl restart vllm@{name}")
