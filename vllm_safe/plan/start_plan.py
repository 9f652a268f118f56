"""The plan of a whole start: its GPUs, the host, and the changes that would make it start."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from vllm_safe.plan.host_needs import HostLimits, HostNeeds, StoredFiles, decide_host_needs
from vllm_safe.plan.network import network_line
from vllm_safe.plan.plan_changes import decide_changes, decide_fit
from vllm_safe.plan.plan_decision import decide_plan
from vllm_safe.plan.plan_facts import PlanFacts
from vllm_safe.plan.plan_question import Plan, PlanChange
from vllm_safe.plan.serving import Card


@dataclass(frozen=True)
class StartPlan:
    """The plan of a start: GPUs and host. changes: they would make it start; fit: the arguments for the longest context."""

    name: str
    plan: Plan
    host: HostNeeds
    cards: tuple[Card, ...]
    changes: tuple[PlanChange, ...] = ()
    fit: PlanChange | None = None
    notes: tuple[str, ...] = ()  # facts that are not known
    source: str = "files"  # the source of the facts about the model: see StoredModel

    @property
    def starts(self) -> bool | None:
        """Whether it starts; None if that is not certain."""
        if self.host.problem:
            return False
        return None if self.plan.doubtful else self.plan.starts

    @property
    def reason(self) -> str:
        """The reason, in one line."""
        if self.host.problem and (self.plan.doubtful or self.plan.starts is not False):
            return self.host.problem
        if self.plan.doubtful and self.plan.starts is not None:
            return f"the estimate leaves something out ({self.plan.unknown[0]}); without it, {self.plan.reason}"
        return self.plan.reason


def decide_start_plan(name: str, facts: PlanFacts, limits: HostLimits, *, fit: bool = False) -> StartPlan:
    """Return the plan. fit: look for the longest context that fits, too."""
    question = facts.question
    plan = decide_plan(question)
    files = StoredFiles(facts.stored.size, facts.pace)
    host = decide_host_needs(facts.serving, limits, forked=facts.forked, files=files, past=facts.past, machines=facts.machines)
    if facts.machines > 1:
        host = replace(host, lines=(*host.lines, network_line(facts.stored.config, facts.serving, facts.machines)))
    changes = () if plan.starts else decide_changes(question)
    fits = decide_fit(question) if fit else None
    return StartPlan(name, plan, host, facts.cards, changes, fits, tuple(_notes(facts, plan)), facts.stored.source)


def _notes(facts: PlanFacts, plan: Plan) -> Iterator[str]:
    stored = facts.stored
    if stored.source == "hub":
        read = "config.json and headers of the files" if stored.tensors else "config.json and sizes of the files"
        yield f"from the hub, revision {stored.revision[:10]}: {read if stored.files else 'config.json alone'}"
    yield from (f"not taken into account: {one}" for one in plan.unknown)
    if facts.machines > 1:
        yield f"each of the {facts.machines} machines is taken to have the GPUs of this one"
    if facts.unread:
        yield facts.unread
