"""The decision on everything that precedes a start, and on the protection that is in force without one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from vllm_safe.common.findings import Finding, Level
from vllm_safe.config.settings import Config
from vllm_safe.contract.launch_file import Launch
from vllm_safe.decide.demand_decision import decide_request, has_failed, is_up_already, waits_to_restart
from vllm_safe.decide.limits import Budget, decide_budget, unit_of
from vllm_safe.decide.protect import UNITS
from vllm_safe.decide.restarts import PAUSES, count_restart
from vllm_safe.decide.serve_command import decide_launch
from vllm_safe.decide.start_checks import Situation, find_start_problems
from vllm_safe.earlyoom.earlyoom_arguments import EarlyoomFiles, decide_earlyoom, keep_earlyoom
from vllm_safe.host.host_facts import Host
from vllm_safe.host.start_facts import Starts


@dataclass(frozen=True)
class Preparation:
    """The result that `apply` brings about: properties by unit, and the content of files. None means that there is no such file."""

    units: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    earlyoom: EarlyoomFiles = field(default_factory=EarlyoomFiles)
    launch: Launch | None = None  # None: no model is started
    key: str | None = field(default=None, repr=False)
    old_key: bool = False  # a key of an earlier start exists, and is removed unless there is a new one
    starts: Starts = field(default_factory=Starts)
    untried: Mapping[str, float] | None = None  # the new marks of untried engines, where some have been tried since; None: no change


def decide_protection_of_all(config: Config, budget: Budget) -> Preparation:
    """Decide the protection that is in force whether a model runs or not."""
    return Preparation(units=budget.units, earlyoom=decide_earlyoom(config))


def decide_default_protection(host: Host, earlyoom: EarlyoomFiles) -> Preparation:
    """Decide the protection while the configuration has errors: the defaults for the system, and earlyoom's present arguments."""
    units = decide_budget(Config(), host).units
    return Preparation(units={unit: units[unit] for unit in UNITS.values()}, earlyoom=keep_earlyoom(earlyoom))


def decide_preparation(start: Situation) -> Preparation:
    """Decide everything that precedes one start. If the start is refused, the limits are set all the same, and nothing is started.

    If the model is up already, only its limits are set.
    """
    common, limits, facts = decide_protection_of_all(start.config, start.budget), start.budget.of(start.name), start.facts
    if is_up_already(start.demand, start.name):
        return replace(common, units={unit_of(start.name): limits.properties, **common.units})
    found = find_start_problems(start)
    request = decide_request(start.demand, start.name)
    again = request > 0 and has_failed(start.demand, start.name)
    starts, too_many = count_restart(
        facts.starts, facts.units, facts.now, facts.asleep, start.name, again=again, elsewhere=facts.ended_elsewhere
    )
    bad = [finding for finding in (*found, too_many) if finding and finding.level is Level.FAIL]
    if request and (waits_to_restart(start.demand, start.name) or (bad and bad[0] is not too_many)):
        starts = facts.starts  # this start does not take place, at least not yet
    refusal = Launch(start.name, bad[0].what, bad[0].do_next, gave_up=bad[0] is too_many) if bad else None
    return Preparation(
        units={unit_of(start.name): limits.properties, **common.units},
        earlyoom=common.earlyoom,
        launch=refusal or _launch(start, found, request=request, restart=len(starts.at)),
        key=facts.key.text if facts.key and not bad else None,
        old_key=facts.old_key,
        starts=starts,
        untried=facts.engine.marks_now if facts.engine and facts.engine.marks != facts.engine.marks_now else None,
    )


def _launch(start: Situation, found: tuple[Finding, ...], *, request: int, restart: int) -> Launch:
    installed = start.facts.engine.current if start.facts.engine else None
    launch = decide_launch(start.config, start.name, start.server, start.budget.of(start.name), str(installed or ""))
    warnings = (f"warning: {finding.what}. {finding.do_next}" for finding in found if finding.level is Level.WARN)
    pause = PAUSES[restart - 1] if restart else 0.0
    return launch._replace(request=request, restart=restart, pause=pause, summary=(*launch.summary, *warnings))
