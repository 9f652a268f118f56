"""Reading of recorded runs, and of the state that the main process of a model writes: for `why`, `report` and `status`."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

from vllm_safe.common.errors import Failure
from vllm_safe.common.paths import RUNS
from vllm_safe.common.systemctl import unit_properties
from vllm_safe.contract.recorded_run import End, Event, Run
from vllm_safe.contract.run_encoding import from_line, unpack_end, unpack_event, unpack_sample, unpack_start
from vllm_safe.contract.small_files import read_regular
from vllm_safe.contract.state_file import end_file, state_file
from vllm_safe.contract.untrusted_files import read_ended, read_object, read_state
from vllm_safe.record import run_store
from vllm_safe.record.json_lines import read_lines
from vllm_safe.record.kill_evidence import UNREAD

__all__ = ["list_runs", "read_run", "read_state", "with_end"]

_T = TypeVar("_T")
_SMALL_MOST = 2 * run_store.SMALL_MOST  # bytes
_LINES_MOST = 2 * run_store.SAMPLES_HEAD  # bytes of one file; the recorder writes no file as large


def list_runs(name: str, folder: Path = RUNS) -> tuple[str, ...]:
    """Return the recorded runs of a model, newest first. Raises Failure if they cannot be read."""
    try:
        runs = run_store.run_names(str(folder), _checked(name))
        # On a full disk, the directory of a run may still be empty.
        return tuple(run for run in runs if os.path.exists(f"{folder}/{name}/{run}/start.json"))
    except OSError as error:
        raise _unreadable(folder / name, error) from error


def read_run(name: str, run: str, folder: Path = RUNS) -> Run:
    """Read a run. Lines that a power cut left incomplete are skipped. Raises Failure if it cannot be read."""
    beginning, path = read_beginning(name, run, folder), f"{folder}/{name}/{run}"
    try:
        samples = _present(unpack_sample(from_line(line)) for line in read_lines(path, "samples", _LINES_MOST))
    except OSError as error:
        raise _unreadable(Path(path), error) from error
    log = (read_regular(f"{path}/log.txt", _LINES_MOST) or b"").rstrip(b"\n").decode(errors="replace").splitlines()
    return beginning._replace(samples=tuple(samples), end=unpack_end(read_object(f"{path}/end.json", _SMALL_MOST)), log=tuple(log))


def read_beginning(name: str, run: str, folder: Path = RUNS) -> Run:
    """Read the start and the events of a run, without its many samples. Raises Failure if it cannot be read."""
    if not run_store.RUN_ID.fullmatch(run):
        raise Failure(f"{name} has no run {run}", hint=f"List its runs with: vllm-safe why {name} --list")
    path = f"{folder}/{_checked(name)}/{run}"
    try:
        os.listdir(path)
        start = unpack_start(read_object(f"{path}/start.json", _SMALL_MOST))
        events = _present(unpack_event(from_line(line)) for line in read_lines(path, "events", _LINES_MOST))
    except OSError as error:
        raise _unreadable(Path(path), error) from error
    if start is None:
        raise Failure(
            f"{path}/start.json is missing or invalid", hint="The machine went down before it was written, or somebody changed it."
        )
    return Run(start, events=tuple(sorted(events, key=lambda event: event.time)))


_GOES_ON = {"active", "activating", "reloading", "deactivating"}  # ActiveState= of a unit that has not ended


def with_end(run: Run, boot: str, now: float) -> Run:
    """Return the run with an end, if systemd reports that it is over and the recorder has not recorded that yet; else the run itself.

    boot: the id of the present boot. now: Unix time. The only source is then what user vllm's own process wrote about its end: whether
    something killed it is unknown.
    """
    if run.end is not None or run.start.boot != boot:
        return run
    name = run.start.name
    shown = unit_properties(f"vllm@{name}.service", "ActiveState", "SubState", "InvocationID")
    invocation = shown.get("InvocationID", "")
    goes_on = shown.get("ActiveState") in _GOES_ON and shown.get("SubState") != "auto-restart"
    # A unit without an invocation was stopped, and its last run is over, too: the recorder may still be writing the end of that run.
    short = run.start.run[-8:]
    is_its_last = invocation[:8] == short if invocation else bool(shown) and not run.is_silent(now)
    if goes_on or not is_its_last:
        return run
    state = read_state(state_file(name))
    invocation = invocation or (state.run if state and state.run[:8] == short else "")
    end = End(now)
    if state and state.run == invocation:
        end = End(now, state.cause, state.reason, error=state.error, served=state.served)
        run = run._replace(log=state.log or run.log)
    return run._replace(end=read_ended(end_file(name), invocation) or end, events=(*run.events, Event(now, "unread", UNREAD)))


def _present(values: Iterable[_T | None]) -> list[_T]:
    return [value for value in values if value is not None]


def _checked(name: str) -> str:
    if "/" in name or name in {"", ".", ".."}:
        raise Failure(f"invalid model name {name!r}")
    return name


def _unreadable(path: Path, error: OSError) -> Failure:
    reason = (error.strerror or str(error)).lower()
    hint = (
        "Run it as root, or as a member of the group adm."
        if isinstance(error, PermissionError)
        else "List the runs with: vllm-safe why NAME --list"
    )
    return Failure(f"cannot read {path}: {reason}", hint=hint)
