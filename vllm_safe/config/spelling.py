"""Suggestions for a key that is not a setting. Imported only when there is a mistake to report."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection

from vllm_safe.config.settings import SECTIONS, Model, settings_of

# Other names for the settings: those of systemd, earlyoom, uv and compose files.
_OTHER_NAMES = {
    "address": ("host",),
    "api_key": ("api_key_file",),
    "arguments": ("args",),
    "bind": ("host",),
    "cmd": ("command",),
    "cpu": ("cpu_weight",),
    "environment": ("env",),
    "exec": ("command",),
    "extra_args": ("args",),
    "hf_token": ("hub_token_file",),
    "id": ("model",),
    "idle": ("idle_timeout",),
    "idle_ttl": ("idle_timeout",),
    "index_url": ("index",),
    "io": ("io_weight",),
    "io_class": ("io_scheduling_class",),
    "ionice": ("io_scheduling_class",),
    "keep_alive": ("idle_timeout",),
    "key_file": ("api_key_file",),
    "lazy": ("on_demand",),
    "listen": ("host",),
    "mem": ("memory", "memory_max"),
    "mem_limit": ("memory_max",),
    "memory": ("memory_max",),
    "memory_limit": ("memory_max",),
    "memory_swap_max": ("swap_max",),
    "memswap_limit": ("swap_max",),
    "min_free": ("keep_free",),
    "options": ("args",),
    "path": ("file", "model"),
    "pids_max": ("tasks_max",),
    "ram": ("memory_max", "protect"),
    "reserve": ("keep_free", "protect"),
    "swap": ("swap_max",),
    "swapfile": ("file", "swap"),
    "timeout": ("start_timeout", "wait"),
    "timeout_start_sec": ("start_timeout",),
    "watchdog": ("hang_timeout",),
    "watchdog_sec": ("hang_timeout",),
    "ttl": ("idle_timeout",),
    "warmup": ("warm_up",),
    "timeout_stop_sec": ("stop_grace",),
    "stop_timeout": ("stop_grace",),
    "url": ("health",),
}

# Options of vLLM that people write beside `args` rather than below it.
_OPTIONS = frozenset(
    {
        *("dtype", "enable-prefix-caching", "enforce-eager", "gpu-memory-utilization", "kv-cache-dtype", "load-format", "max-model-len"),
        *("max-num-batched-tokens", "max-num-seqs", "pipeline-parallel-size", "quantization", "revision", "tensor-parallel-size"),
        *("tokenizer", "trust-remote-code"),
    }
)


def closest(word: str, choices: Collection[str]) -> str:
    """Return the choice that is most similar to `word`, or ""."""
    return next(iter(difflib.get_close_matches(word[:80], choices, 1)), "")


def intended_setting(key: str, names: Collection[str]) -> str:
    """Return the setting that was probably meant by `key` in a section that has the settings `names`.

    It is one of `names`, or "SECTION.NAME" for a setting of another section, or "".
    """
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", key[:80].strip())
    tidy = re.sub(r"[-\s]+", "_", words).lower().strip("_")
    if tidy in names:
        return tidy
    for name in _OTHER_NAMES.get(tidy, ()):
        if name in names:
            return name
    if "args" in names and tidy.replace("_", "-") in _OPTIONS:
        return f"args.{tidy.replace('_', '-')}"
    if near := closest(tidy, names):
        return near
    return _elsewhere(tidy, names)


def _elsewhere(tidy: str, names: Collection[str]) -> str:
    """Return the setting of this name in another section (for a model: in its own `limits`) as "SECTION.NAME", or ""."""
    for section, rows in {**SECTIONS, "models.NAME": Model}.items():
        if tidy in {row.name for row in settings_of(rows)}:
            return f"{section}.{tidy}" if section not in names or section in {"limits", "swap"} else ""
    return ""
