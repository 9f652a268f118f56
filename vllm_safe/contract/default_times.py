"""The times of a start, a hang and a stop where nobody set any: for the settings' explanations, decisions and the launch file alike."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

# Seconds, where neither the model nor its profile says anything.
DEFAULT_TIMES: Mapping[str, float] = MappingProxyType(
    {
        "start_timeout": 4 * 3600.0,  # a large model on a hard disk takes 10 to 60 minutes; what stands still is ended by stall_timeout
        "stall_timeout": 900.0,
        "hang_timeout": 600.0,  # vLLM itself gives a step of several cards 300 s (VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS)
        "stop_grace": 30.0,
    }
)
