"""vllm-safe-ended NAME: ExecStopPost= of vllm@NAME.service. Writes down what systemd and the kernel know of an end, and says it."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from vllm_safe.common.kernfs import parse_flat_keyed, read_kernel_file
from vllm_safe.common.notify import notify
from vllm_safe.contract import state_file
from vllm_safe.contract.guard_file import EVENTS_FOLDER
from vllm_safe.launch.processes import own_cgroup

JUST_NOW = 60.0  # seconds; a machine that needs its guard is slow

# $SERVICE_RESULT, as systemd.exec(5) lists it, for a person.
RESULTS = {
    "oom-kill": "the kernel ended it: out of memory",
    "watchdog": "systemd ended it: its main process had not been heard of for WatchdogSec=",
    "timeout": "systemd ended it: its main process did not start or stop it in time",
    "signal": "its main process was killed by SIG{status}",
    "core-dump": "its main process was killed by SIG{status}",
    "resources": "systemd could not start it",
    "exit-code": "its main process ended with exit status {status}",
    "success": "stopped",
}


def main() -> None:
    """The console script. It never fails: an end is an end."""
    for name in sys.argv[1:2]:
        _record(name)


def _record(name: str) -> None:
    env = os.environ
    run = env.get("INVOCATION_ID", "")
    last = _last_state(name)
    mine = last.get("run") == run
    cause = str(last.get("cause", "")) if mine else ""
    reason = str(last.get("reason", "")) if mine else ""
    result, status = env.get("SERVICE_RESULT", ""), env.get("EXIT_STATUS", "")
    folder = own_cgroup()
    end = {
        "time": time.time(),
        "run": run,
        "cause": cause,
        "reason": reason,
        "error": str(last.get("error", "")) if mine else "",
        "served": mine and last.get("served") is True,
        "result": result,
        "exit_code": env.get("EXIT_CODE", ""),
        "exit_status": status,
        "memory_events": _events(folder, "memory.events"),
        "swap_events": _events(folder, "memory.swap.events"),
    }
    state_file.write_end(name, end)
    if not cause:  # else the main process has said it already, and better; a stale "ready" must not stay
        notify(STATUS=_by_the_guard(name) or RESULTS.get(result, f"ended: {result}").format(status=status))


def _by_the_guard(name: str) -> str:
    """What the guard says, if the last that it did to this model was to kill it, just now; else "".

    What it gives back is not counted: a model that it kills while frozen is thawed, to die.
    """
    try:
        lines = Path(EVENTS_FOLDER, f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        last = next(event for event in map(json.loads, reversed(lines)) if event["act"] not in {"thaw", "restore"})
        recent = time.time() - float(last["time"]) < JUST_NOW
        return f"the guard: {last['text']}" if last["act"] == "kill" and recent else ""
    except (OSError, ValueError, LookupError, TypeError, StopIteration):
        return ""


def _last_state(name: str) -> Mapping[str, object]:
    try:
        values = json.loads(state_file.state_file(name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _events(folder: Path | None, name: str) -> dict[str, int]:
    """The counters in a file of the cgroup: {} where there is none."""
    return parse_flat_keyed(read_kernel_file(f"{folder}/{name}")) if folder else {}
