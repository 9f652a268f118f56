"""Recorded runs and the verdict on each, for `why`, `report` and `status`."""

from __future__ import annotations

import os
import time
from pathlib import Path

from vllm_safe.common.errors import ConfigError, Failure, Misuse
from vllm_safe.config.model_names import require_model
from vllm_safe.config.reader import load
from vllm_safe.contract.recorded_run import Run
from vllm_safe.contract.state_file import state_file
from vllm_safe.diagnose.diagnosis import decide_why, decide_why_down
from vllm_safe.diagnose.verdict import Verdict
from vllm_safe.record.run_reader import list_runs, read_run, with_end

_BOOT = Path("/proc/sys/kernel/random/boot_id")


def recorded_runs(name: str, config_path: Path, command: str) -> tuple[str, ...]:
    """Return the recorded runs, newest first. Raises Failure, with a hint, if there are none.

    command: the command of vllm-safe that the hint suggests to root, "why" or "report".
    """
    try:
        runs = list_runs(name)
    except Failure as failure:
        raise failure if os.geteuid() == 0 else Failure(failure.message, hint=f"sudo vllm-safe {command} {name}") from None
    if not runs:
        _check_name(name, config_path)
        if os.path.lexists(state_file(name)):  # the folder belongs to user vllm: links are not followed
            reason = "it was started, and the recorder has not written anything yet"
            raise Failure(
                f"no run of {name} is recorded: {reason}", hint=f"Try again soon, or see: systemctl status vllm-safe-record@{name}"
            )
        raise Failure(f"no run of {name} is recorded: it has not been started yet", hint=f"systemctl start vllm@{name}")
    return runs


def _check_name(name: str, config_path: Path) -> None:
    """Raise Misuse if the configuration can be read, and has no such model."""
    try:
        config = load(config_path)
    except (ConfigError, Failure, OSError):
        return
    require_model(config, name)


def choose_run(name: str, runs: tuple[str, ...], which: str) -> str:
    """Return the run that `which` names: its number, from 1 for the last, or its id. Raises Misuse if there is none."""
    if which in runs:
        return which
    if which.isdecimal() and len(which) < 6 and 1 <= int(which) <= len(runs):
        return runs[int(which) - 1]
    raise Misuse(f"{name} has no run {which}; {len(runs)} are recorded", hint=f"vllm-safe why {name} --list")


def judge_run(name: str, chosen: str, *, wait: float = 0.0) -> tuple[Run, Verdict]:
    """Return a recorded run, and the verdict on it.

    If the run was only refused as one restart too many, the result is the last run before it that ended. wait: seconds to wait for the
    recorder to write the end of a run that is over.
    """
    run, verdict = _judge_alone(name, chosen, wait=wait)
    if verdict.code == "gave-up":
        before = next((try_judge_run(name, older) for older in list_runs(name) if older < chosen), None)
        if before and before[1].code not in {"gave-up", "running"}:
            return before[0], decide_why_down(verdict, *before)
    return run, verdict


def _judge_alone(name: str, chosen: str, *, wait: float = 0.0) -> tuple[Run, Verdict]:
    run, boot, until = read_run(name, chosen), _BOOT.read_text(encoding="ascii").strip(), time.monotonic() + wait
    while (ended := with_end(run, boot, time.time())) is not run and time.monotonic() < until:
        time.sleep(0.2)
        run = read_run(name, chosen)
    return run, decide_why(ended, boot, time.time())


def try_judge_run(name: str, chosen: str) -> tuple[Run, Verdict] | None:
    """Return one run and the verdict on it, or None if it cannot be read."""
    try:
        return _judge_alone(name, chosen)
    except Failure:
        return None
