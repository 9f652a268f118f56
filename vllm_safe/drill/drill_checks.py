"""The check of whether a drill can run on this machine now."""

from __future__ import annotations

from vllm_safe.common.errors import Misuse
from vllm_safe.common.findings import Level
from vllm_safe.common.kernfs import MEMORY_PRESSURE, parse_stall_share, read_kernel_file
from vllm_safe.common.systemctl import show_properties
from vllm_safe.config.settings import Config
from vllm_safe.decide.limits import Budget
from vllm_safe.decide.start_checks import SWAP_SERVICE, LimitSituation, check_cgroups, check_memory, check_swap
from vllm_safe.drill.drill_decision import check_ready
from vllm_safe.drill.hog_unit import occupants
from vllm_safe.host.host_facts import Host
from vllm_safe.host.start_facts import StartFacts


def require_ready(config: Config, host: Host, budget: Budget, name: str) -> None:
    """Raise Misuse if a drill under the limits of `name` would show nothing on this machine, or would do harm."""
    facts = StartFacts(swap_file=str(config.swap.file.resolve()), units=show_properties([SWAP_SERVICE], ("Id", "StatusText")))
    situation = LimitSituation(config, host, name, budget, facts)
    checks = [check(situation) for check in (check_cgroups, check_memory, check_swap)]
    for finding in (*checks, check_ready(budget, host, occupants(), parse_stall_share(read_kernel_file(MEMORY_PRESSURE), "some"))):
        if finding.level is Level.FAIL or (finding.level is Level.WARN and finding is checks[0]):
            raise Misuse(f"the drill was not started: {finding.what}", hint=finding.do_next)
