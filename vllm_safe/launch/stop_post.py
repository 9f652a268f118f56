"""The program vllm-safe-ended NAME, ExecStopPost= of vllm@NAME.service: records what systemd and the kernel know of an end."""

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

JUST_NOW = 60.0  # seconds since a kill of the guard that belongs to a run whose beginning is unknown

# The texts for $SERVICE_RESULT, as systemd.exec(5) lists its values.
RESULTS = {
    "oom-kill": "killed by the kernel: out of memory",
    "watchdog": "killed by systemd: the main process sent no watchdog notification within WatchdogSec=",
    "timeout": "killed by systemd: the main process did not start or stop in time",
    "signal": "the main process was killed by SIG{status}",
    "core-dump": "the main process was killed by SIG{status}",
    "resources": "systemd could not start the main process",
    "exit-code": "the main process exited with status {status}",
    "success": "stopped",
}


def main() -> None:
    """Run the console script. It never fails."""
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
        began = last.get("started") if mine else None
        killed = _by_the_guard(name, began if isinstance(began, int | float) else time.time() - JUST_NOW)
        notify(STATUS=killed or RESULTS.get(result, f"ended: {result}").format(status=status))


def _by_the_guard(name: str, since: float) -> str:
    """Return the sentence for a kill by the guard, if that was its last action on this model since the Unix time `since`; else "".

    A machine that needs its guard is slow, and the processes may live for minutes after the kill. Actions that take something back do not
    count: a model that is killed while frozen is thawed, so that it can exit.
    """
    try:
        lines = Path(EVENTS_FOLDER, f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        last = next(event for event in map(json.loads, reversed(lines)) if event["act"] not in {"thaw", "restore"})
        return f"{name} was {last['text']}" if last["act"] == "kill" and float(last["time"]) >= since else ""
    except (OSError, ValueError, LookupError, TypeError, StopIteration):
        return ""


def _last_state(name: str) -> Mapping[str, object]:
    try:
        values = json.loads(state_file.state_file(name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _events(folder: Path | None, name: str) -> dict[str, int]:
    """Read the counters in a file of the cgroup; {} if it does not exist."""
    return parse_flat_keyed(read_kernel_file(f"{folder}/{name}")) if folder else {}
