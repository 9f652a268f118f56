"""The plan of `vllm-safe install`: the steps to the requested engine, or to the previous one."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from vllm_safe.common.errors import Failure
from vllm_safe.common.findings import Level
from vllm_safe.common.steps import Step
from vllm_safe.config.settings import Engine
from vllm_safe.driver.driver_facts import read_driver
from vllm_safe.engine.engine_decision import Trial, current_of, decide_install, decide_trial, is_wanted, previous_of, require_no_loss
from vllm_safe.engine.engine_facts import EngineFacts, Installed
from vllm_safe.engine.engine_steps import (
    exchange_steps,
    install_steps,
    mark_tried_steps,
    read_install_target,
    try_steps,
)
from vllm_safe.engine.requirement_locks import read_lock
from vllm_safe.sandbox.unused_proxies import withheld_proxy_lines


class Say(Protocol):
    """A function that prints a line for people, as click.echo does."""

    def __call__(self, line: str, /, *, err: bool = False) -> None:
        """Print the line to stdout, or with `err` to stderr."""


@dataclass(frozen=True)
class InstallRequest:
    """The options of one call of `vllm-safe install`, and the section `engine`."""

    engine: Engine
    version: str | None
    reinstall: bool
    rollback: bool
    only_try: bool


def plan_install(request: InstallRequest, facts: EngineFacts, is_working: Callable[[Installed, bool], bool], say: Say) -> tuple[Step, ...]:
    """Return the steps of the installation; none if the requested engine is in use and works."""
    if request.only_try:
        return _try(facts)
    if request.rollback:
        previous = previous_of(facts)
        return exchange_steps(previous, facts, tried=_trial(previous.package, previous.version, say).possible)
    version = request.version or request.engine.version
    trial = _trial(request.engine.package, version, say)
    if not request.reinstall and facts.current and is_wanted(facts.current, request.engine, version):
        if is_working(facts.current, trial.possible):
            return _keep(facts.current, facts, trial, say)
        say(f"{facts.current} is installed, but does not work: rebuilding it.", err=True)
        facts = replace(facts, current=None)  # an engine that does not work is not kept as the previous one
    elif not request.reinstall and facts.previous and is_wanted(facts.previous, request.engine, version):
        if facts.previous.folder in facts.untried:
            require_no_loss(str(facts.previous), request.engine, facts, trial)
        say(f"{facts.previous} is installed as the previous engine.")
        return exchange_steps(facts.previous, facts, tried=trial.possible)
    locks = {name: read_lock(name) for name in (request.engine.package, "uv")}
    target = replace(read_install_target(facts, request.engine.find_links), trial=trial)
    installation = decide_install(request.engine, version, facts, target, locks)
    if not installation.sources.offline:
        _warn_of_proxies(say)
    if installation.lock is None:
        say(
            f"{installation} is not a version that vllm-safe was tested with on this machine: its dependencies are resolved and hashed now."
        )
    if not installation.tried:
        say(f"{installation} is installed untried: no GPU is available.")
    return install_steps(installation, facts, locks["uv"], time.time())


def _warn_of_proxies(say: Say) -> None:
    for line in withheld_proxy_lines():
        say(line, err=True)


def _try(facts: EngineFacts) -> tuple[Step, ...]:
    """Return the steps of the trial of the engine in use. Raises Failure if it cannot be tried on the cards."""
    current = current_of(facts)
    trial = _trial(current.package, current.version, None)
    if trial.cards and not trial.possible:
        raise Failure(f"{current} cannot be tried: {trial.cards.what}", hint=trial.cards.do_next)
    return try_steps(current, facts, tried=True)


def _keep(current: Installed, facts: EngineFacts, trial: Trial, say: Say) -> tuple[Step, ...]:
    """Print that the engine is installed already. If it has just been tried, return the step that records it."""
    if facts.is_untried and not trial.possible:
        say(f"{current} is installed, but untried. Once a GPU is available: vllm-safe install --try")
        return ()
    say(f"{current} is installed and works. To rebuild it: vllm-safe install --reinstall")
    return mark_tried_steps(current, facts)


def _trial(package: str, version: str, say: Say | None) -> Trial:
    """Decide whether an engine can be tried now, and print a problem with the cards. Raises Failure if it can never work on them."""
    trial = decide_trial(package, version, read_lock(package), read_driver() if package == "vllm" else None)
    if say and trial.cards and trial.cards.level is Level.WARN:
        say(f"warning: {trial.cards.what}\n  {trial.cards.do_next}", err=True)
    return trial
