"""The step that stores the measured speed of a model's disk, for `vllm-safe plan`."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from vllm_safe.check.check_facts import MeasuredDisk
from vllm_safe.common.paths import DISK_PACES
from vllm_safe.contract.small_files import write_whole
from vllm_safe.contract.untrusted_files import read_object
from vllm_safe.plan.disk_pace_facts import DISK_PACES_MOST


def store_disk_pace(model: str, measured: MeasuredDisk | None, file: Path = DISK_PACES) -> None:
    """Store the speed, if it was measured on the model's own files and this process may write (root)."""
    if measured and measured.total and measured.pace.rate:
        content = json.dumps(read_object(file, DISK_PACES_MOST) | {model: round(measured.pace.rate)}) + "\n"
        with suppress(OSError):  # another user, or a full disk: the speed is not stored
            write_whole(str(file), content.encode())
