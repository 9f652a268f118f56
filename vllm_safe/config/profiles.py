"""Profiles: named sets of environment, options and times for a kind of machine, each with its reason and source.

What a model sets itself goes before its profile.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

_HOUR = 3600.0


@dataclass(frozen=True)
class Profile:
    """`args` are options of `vllm serve`; times are in seconds, None means that the profile has no opinion."""

    name: str
    reason: str
    source: str
    env: Mapping[str, str]
    args: Mapping[str, Any]
    start_timeout: float | None = None
    stall_timeout: float | None = None
    hang_timeout: float | None = None
    stop_grace: float | None = None


DEFAULT = Profile(
    name="default",
    reason="Nothing is set: vLLM's own defaults.",
    source="vLLM's documentation, docs/configuration/engine_args.md",
    env=MappingProxyType({}),
    args=MappingProxyType({}),
)

PCIE_RISER = Profile(
    name="pcie-riser",
    reason="Cards on x1 risers, without a way to each other, filled from a slow disk: they hang where others are slow.",
    source="the installation plan, step 3; vLLM's docs/usage/troubleshooting.md; vllm issues 8058, 14449, 17676, 17965, 48031",
    env=MappingProxyType(
        {
            "NCCL_P2P_DISABLE": "1",  # cards on risers hang when they talk to each other directly: through host RAM instead
            "NCCL_IB_DISABLE": "1",  # no InfiniBand here; do not probe for it
            # A card that does not answer ends the process rather than keeping it for ever. torch reads the first name;
            # vLLM's workers drop the second, older one, which the plan asks for.
            "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",
            "NCCL_ASYNC_ERROR_HANDLING": "1",
            "VLLM_ENGINE_READY_TIMEOUT_S": "14400",  # 600 s by default; 77 GB take up to hours from a hard disk
            "VLLM_WORKER_MULTIPROC_METHOD": "fork",  # eight workers share what they import: decide/serve_command.py has the figures
            "VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS": "1800",  # of one step, 300 s by default; 8192 tokens take 188 s over Gen1 x1
        }
    ),
    args=MappingProxyType(
        {
            "disable-custom-all-reduce": True,  # needs direct access from card to card; else it is probed for first
            # Ranks finish loading at different times, and the first waits for the last: 600 s and 1800 s by default.
            "distributed-timeout-seconds": 7200,
            "cpu-distributed-timeout-seconds": 7200,
            "max-num-seqs": 64,  # fewer requests at once, fewer jams on the bus (256 by default)
        }
    ),
    start_timeout=4 * _HOUR,  # as VLLM_ENGINE_READY_TIMEOUT_S, which alone does not bound the load (vllm issue 48031)
    stall_timeout=0.5 * _HOUR,  # NCCL's own start over risers, and a disk that seeks between eight readers, are silent for long
    hang_timeout=2400.0,  # above VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS: vLLM's own error says more
    stop_grace=120.0,  # a request under way ends at a few tokens per second
)

PROFILES: Mapping[str, Profile] = MappingProxyType({profile.name: profile for profile in (DEFAULT, PCIE_RISER)})
