"""How fast the disk of a model was when `vllm-safe check --disk` last read it."""

from __future__ import annotations

from pathlib import Path

from vllm_safe.common.paths import DISK_PACES
from vllm_safe.contract.run_encoding import number
from vllm_safe.contract.untrusted_files import read_object

DISK_PACES_MOST = 1 << 16  # bytes of the file


def read_disk_pace(model: str, file: Path = DISK_PACES) -> float:
    """Return the bytes a second, 0 if they were not measured. model: the setting of that name."""
    return max(number(read_object(file, DISK_PACES_MOST).get(model)) or 0.0, 0.0)
