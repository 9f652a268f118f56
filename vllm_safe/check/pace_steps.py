"""The step that keeps how fast a model's disk was, for `vllm-safe plan`."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from vllm_safe.check.check_facts import MeasuredDisk
from vllm_safe.common.paths import DISK_PACES
from vllm_safe.contract.small_files import write_whole
from vllm_safe.contract.untrusted_files import read_object
from vllm_safe.plan.disk_pace_facts import DISK_PACES_MOST


def keep_disk_pace(model: str, measured: MeasuredDisk | None, file: Path = DISK_PACES) -> None:
    """Keep it, if it is that of the model's files, and if this is root."""
    if measured and measured.total and measured.pace.rate:
        content = json.dumps(read_object(file, DISK_PACES_MOST) | {model: round(measured.pace.rate)}) + "\n"
        with suppress(OSError):  # another user, or a disk that is full: then it is not kept
            write_whole(str(file), content.encode())
