"""Situations of a start for unit tests: what is decided follows from the configuration and the facts that are handed in."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from vllm_safe.common.findings import Finding, Level
from vllm_safe.common.sizes import GIB
from vllm_safe.config.settings import Config, Model
from vllm_safe.decide.limits import decide_budget
from vllm_safe.decide.serve_command import decide_server
from vllm_safe.decide.start_checks import Situation, find_start_problems
from vllm_safe.host.host_facts import Host, SwapArea
from vllm_safe.host.start_facts import StartFacts
from vllm_safe.models.model_files import ModelFiles


def situation_of(config: Config, host: Host, name: str, facts: StartFacts) -> Situation:
    """Return the situation of a start of the model `name`."""
    return Situation(config, host, name, decide_budget(config, host), facts, decide_server(config, host, name, facts.environment))


def changed(at: Situation, *, config: Config | None = None, host: Host | None = None, facts: StartFacts | None = None) -> Situation:
    """Return the situation with other settings or facts, decided anew."""
    return situation_of(config or at.config, host or at.host, at.name, facts or at.facts)


# A start that passes every check.
GOOD = situation_of(
    Config(models={"x": Model(model="a/b")}),
    Host(memory=16 * GIB, swaps=(SwapArea("/swapfile", "file", 128 * GIB, 0),), cgroup2=True, controllers=frozenset({"memory"})),
    "x",
    StartFacts(server=True, model=ModelFiles(Path("/m/a/b"), "a/b", present=True), swap_file="/swapfile", now=10_000.0),
)


def with_model(**changes: object) -> Situation:
    """Return GOOD with other settings of the model."""
    return changed(GOOD, config=Config(models={"x": replace(GOOD.model, **changes)}))  # type: ignore[arg-type]  # the settings have these names


def with_host(**changes: object) -> Situation:
    """Return GOOD with other facts about the machine."""
    return changed(GOOD, host=replace(GOOD.host, **changes))  # type: ignore[arg-type]  # the facts have these names


def with_facts(**changes: object) -> Situation:
    """Return GOOD with other facts about the start."""
    return changed(GOOD, facts=replace(GOOD.facts, **changes))  # type: ignore[arg-type]  # the facts have these names


def findings_of(level: Level, at: Situation) -> list[Finding]:
    """Return the findings of this level."""
    return [finding for finding in find_start_problems(at) if finding.level is level]
