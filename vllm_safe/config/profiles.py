"""Profiles: named sets of environment variables, options and times for a kind of machine, each with its reason and source.

A model's own settings take precedence over its profile.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

_HOUR = 3600.0


@dataclass(frozen=True)
class Profile:
    """One profile. `args` are options of `vllm serve`. Times are in seconds; None means that the profile does not set the time."""

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
    reason="Sets nothing: vLLM's own defaults apply.",
    source="vLLM's documentation, docs/configuration/engine_args.md",
    env=MappingProxyType({}),
    args=MappingProxyType({}),
)

PCIE_RISER = Profile(
    name="pcie-riser",
    reason="For GPUs on x1 risers without peer-to-peer access, loaded from a slow disk: they hang where other GPUs are only slow.",
    source="the installation plan, step 3; vLLM's docs/usage/troubleshooting.md; vllm issues 8058, 14449, 17676, 17965, 48031",
    env=MappingProxyType(
        {
            "NCCL_P2P_DISABLE": "1",  # cards on risers hang in direct transfers between cards; this makes NCCL go through host RAM
            "NCCL_IB_DISABLE": "1",  # such machines have no InfiniBand to probe for
            # A card that does not answer ends the process instead of blocking it for ever. torch reads the first name. vLLM's workers
            # drop the second, older name, which the installation plan asks for.
            "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",
            "NCCL_ASYNC_ERROR_HANDLING": "1",
            "VLLM_ENGINE_READY_TIMEOUT_S": "14400",  # the default is 600 s; reading 77 GB from a hard disk can take hours
            "VLLM_WORKER_MULTIPROC_METHOD": "fork",  # eight workers share their imports; decide/server_environment.py has the figures
            "VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS": "1800",  # for one step; the default is 300 s, and 8192 tokens take 188 s over Gen1 x1
        }
    ),
    args=MappingProxyType(
        {
            "disable-custom-all-reduce": True,  # custom all-reduce needs peer-to-peer access between cards, and vLLM would probe for it
            # Ranks finish loading at different times, and the first waits for the last. The defaults are 600 s and 1800 s.
            "distributed-timeout-seconds": 7200,
            "cpu-distributed-timeout-seconds": 7200,
            "max-num-seqs": 64,  # the default is 256; fewer concurrent requests congest the bus less
        }
    ),
    start_timeout=4 * _HOUR,  # equals VLLM_ENGINE_READY_TIMEOUT_S, which alone does not bound the load (vllm issue 48031)
    stall_timeout=0.5 * _HOUR,  # NCCL's initialization over risers, and a disk that seeks between eight readers, are silent for long
    hang_timeout=2400.0,  # above VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS, so that vLLM's own, more specific error comes first
    stop_grace=120.0,  # a running request finishes at a few tokens per second
)

PROFILES: Mapping[str, Profile] = MappingProxyType({profile.name: profile for profile in (DEFAULT, PCIE_RISER)})
