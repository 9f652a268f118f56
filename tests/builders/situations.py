"""Situations of a start for unit tests: what is decided follows from the configuration and the facts that are handed in."""

from __future__ import annotations

from vllm_safe.config.settings import Config
from vllm_safe.decide.limits import decide_budget
from vllm_safe.decide.serve_command import decide_server
from vllm_safe.decide.start_checks import Situation
from vllm_safe.host.host_facts import Host
from vllm_safe.host.start_facts import StartFacts


def situation_of(config: Config, host: Host, name: str, facts: StartFacts) -> Situation:
    """Return the situation of a start of the model `name`."""
    return Situation(config, host, name, decide_budget(config, host), facts, decide_server(config, host, name, facts.environment))


def changed(at: Situation, *, config: Config | None = None, host: Host | None = None, facts: StartFacts | None = None) -> Situation:
    """Return the situation with other settings or facts, decided anew."""
    return situation_of(config or at.config, host or at.host, at.name, facts or at.facts)
