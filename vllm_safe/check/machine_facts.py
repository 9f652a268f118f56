"""The facts that the checks of the machine depend on."""

from __future__ import annotations

from dataclasses import dataclass

from vllm_safe.check.check_facts import Inspection
from vllm_safe.common.errors import Failure
from vllm_safe.config.settings import Config
from vllm_safe.decide.limits import Budget
from vllm_safe.host.host_facts import Host


@dataclass(frozen=True)
class MachineFacts:
    """Everything that the checks of the machine depend on."""

    config: Config
    host: Host
    budget: Budget
    seen: Inspection
    swap_refused: Failure | None = None  # why the swapfile cannot be created or changed
