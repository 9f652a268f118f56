"""The speed of a model's disk when `vllm-safe check --disk` last measured it."""

from __future__ import annotations

from pathlib import Path

from vllm_safe.common.paths import DISK_PACES
from vllm_safe.contract.run_encoding import number
from vllm_safe.contract.untrusted_files import read_object

DISK_PACES_MOST = 1 << 16  # bytes of the file


def read_disk_pace(model: str, file: Path = DISK_PACES) -> float:
    """Return the speed in bytes per second, 0 if it was not measured. model: the setting of that name."""
    return max(number(read_object(file, DISK_PACES_MOST).get(model)) or 0.0, 0.0)
