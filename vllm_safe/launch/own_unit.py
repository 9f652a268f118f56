"""The unit of the main process: its cgroup, its watchdog, its journal, and how its previous start ended."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path

from vllm_safe.contract import state_file
from vllm_safe.contract.launch_file import Launch
from vllm_safe.launch.processes import own_cgroup


def previous_end(launch: Launch) -> tuple[str, str]:
    """Return the cause of the previous end, and its error if that start never served; "" where this is no automatic restart."""
    if not launch.restart:
        return "", ""
    with suppress(OSError, ValueError, AttributeError):
        before = json.loads(state_file.state_file(launch.name).read_text(encoding="utf-8"))
        cause = str(before.get("cause", ""))
        return cause, str(before.get("error", "")) if cause == "exited" and before.get("served") is False else ""
    return "", ""


def journal_level(level: int) -> str:
    """Return the prefix that sets the level of a line in the journal (SyslogLevelPrefix=); "" on a terminal."""
    return f"<{level}>" if "JOURNAL_STREAM" in os.environ else ""


def own_unit() -> Path | None:
    """Return the cgroup of the unit; None if this process runs in another cgroup, whose processes must not be killed."""
    folder = own_cgroup()
    return folder if folder and folder.name.startswith("vllm@") else None


def watchdog_seconds() -> float:
    """Return the seconds within which systemd expects a watchdog notification, or 0."""
    mine = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    return int(os.environ.get("WATCHDOG_USEC") or 0) / 1e6 if mine else 0.0
