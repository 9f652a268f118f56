"""The decision which kernel tunables get another value while a model runs."""

from __future__ import annotations

from collections.abc import Mapping

from vllm_safe.config.settings import Config
from vllm_safe.tunables.tunable_facts import LRU_GEN


def decide_tunables(config: Config, there: Mapping[str, str]) -> dict[str, str]:
    """Decide the value that each tunable gets, by path, as the kernel writes it. `there` has the current values."""
    wanted = dict(there)
    if LRU_GEN in there and config.tunables.lru_gen and not _is_on(there[LRU_GEN]):
        wanted[LRU_GEN] = "y"
    return wanted


def _is_on(mask: str) -> bool:
    try:
        return bool(int(mask, 16) & 1)
    except ValueError:
        return False
