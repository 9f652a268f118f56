"""Whether a person or a client asked for a start, and which models are up. Pure.

A client's connection makes systemd start vllm-on-demand@NAME.service, which wants vllm@NAME.service. So the job of the former is older than
the job that it causes. If a person starts vllm@NAME.service, its job is older, or the only one (systemd 252 to 257:
tests/system/test_on_demand.py).
"""

from __future__ import annotations

import math

from vllm_safe.contract.launch_file import Launch
from vllm_safe.host.demand_facts import DemandFacts, UnitFacts
from vllm_safe.room.room_decision import UpModel


def decide_request(facts: DemandFacts, name: str) -> int:
    """Return the job of the client's request that caused this start of the model `name`, or 0 if a person requested it.

    An automatic restart keeps what the model had before, even if a request comes first. A second start within the same request is a person
    who restarts the model.
    """
    unit, before = facts.model(name), facts.launches.get(name)
    if before and unit.restarts > before.restarts:
        return before.launch.request
    proxy = facts.proxies.get(name, UnitFacts())
    if not 0 < proxy.job < unit.job:
        return 0
    if before and not before.launch.refusal:
        known = 0 if unit.sub.startswith("auto-restart") else proxy.job
        if before.launch.request == known:
            return 0
    return proxy.job


def has_failed(facts: DemandFacts, name: str) -> bool:
    """Return whether the last run of a model failed. A start that the checks refused does not count."""
    before = _launch_of(facts, name)
    return facts.model(name).result not in {"", "success"} and before is not None and (not before.refusal or before.gave_up)


def waits_to_restart(facts: DemandFacts, name: str) -> bool:
    """Return whether the model waits for its automatic restart. It will be prepared again for that, with a higher count of restarts."""
    unit, before = facts.model(name), facts.launches.get(name)
    return unit.sub.startswith("auto-restart") and before is not None and unit.restarts <= before.restarts


def is_up_already(facts: DemandFacts, name: str) -> bool:
    """Return whether the model is up, so that it needs no preparation. systemd starts `prepare` with any unit that wants the model."""
    return facts.model(name).has_processes


def decide_up(facts: DemandFacts, wanted: str) -> tuple[UpModel, ...]:
    """Return the models that are up, or will be before `wanted`. Times are seconds since boot, except `used`, which only orders them."""
    return tuple(_up(facts, name) for name in facts.models if name != wanted and _counts(facts, name))


def _counts(facts: DemandFacts, name: str) -> bool:
    """Return whether a model occupies memory, or is about to: it has processes, or its start has been prepared and comes next."""
    unit, preparing = facts.model(name), facts.preparing.get(name, UnitFacts())
    if unit.has_processes or not unit.job:
        return unit.has_processes
    if preparing.active == "activating":
        launch = facts.launches.get(name)
        return launch is not None and launch.written >= preparing.begun > 0
    return not preparing.job


def _up(facts: DemandFacts, name: str) -> UpModel:
    unit, launch = facts.model(name), _launch_of(facts, name)
    serves = unit.active == "active"
    # A model that is stopping has had its time. It is not known when a loading model will be ready.
    stays = unit.ready + (unit.ready - unit.begun) if serves else 0.0 if unit.active == "deactivating" else math.inf
    pinned = (launch is None or launch.request == 0) and unit.active != "deactivating"
    return UpModel(name, pinned=pinned, used=facts.used.get(name, 0.0), stays=stays)


def _launch_of(facts: DemandFacts, name: str) -> Launch | None:
    found = facts.launches.get(name)
    return found.launch if found else None
