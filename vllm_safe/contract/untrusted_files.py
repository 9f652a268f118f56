"""Readers for files that user vllm writes: the state of the main process, and systemd's report of the end. Every value is checked."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from vllm_safe.contract.recorded_run import End
from vllm_safe.contract.run_encoding import from_line, integer, mapping, number, text, texts, unpack_end
from vllm_safe.contract.small_files import read_regular
from vllm_safe.contract.state_file import KEPT_LINES, PHASES, LoadProgress, ReportedMemory, State

_STATE_MOST = 1 << 21  # bytes: 200 long lines
_END_MOST = 1 << 16
_WORKERS_MOST = 1024
_BEYOND_TIME = 1e11  # Unix seconds: the year 5138


def read_object(path: str | os.PathLike[str], most: int) -> dict[str, Any]:
    """Read the JSON object in a file that any user may have written, of at most `most` bytes. Return {} for anything else."""
    content = read_regular(path, most)
    return {} if content is None else mapping(from_line(content))


def read_state(path: str | os.PathLike[str]) -> State | None:
    """Read the last state that the main process of a model wrote, or None if it is not valid. User vllm may have written anything."""
    given = read_object(path, _STATE_MOST)
    pid = number(given.get("pid"))
    at, started, since = (_moment(given.get(key)) for key in ("time", "started", "since"))
    phase = text(given.get("phase"))
    if pid is None or at is None or started is None or since is None or phase not in PHASES:
        return None
    return State(
        name=text(given.get("name")),
        run=text(given.get("run")),
        pid=int(pid),
        time=at,
        started=started,
        phase=phase,
        since=since,
        text=text(given.get("text")),
        progress=_progress(given.get("progress")),
        memory=read_reported_memory(mapping(given.get("memory"))),
        running=integer(given.get("running")),
        waiting=integer(given.get("waiting")),
        tokens=integer(given.get("tokens")),
        cause=text(given.get("cause")),
        reason=text(given.get("reason")),
        log=texts(given.get("log"))[-KEPT_LINES:],
        error=text(given.get("error")),
        served=given.get("served") is True,
        used=_moment(given.get("used")),
        idle_timeout=_positive(given.get("idle_timeout")),
        nodes=text(given.get("nodes")),
    )


def read_ended(path: str | os.PathLike[str], invocation: str) -> End | None:
    """Read the end that launch/stop_post.py wrote for this invocation of the unit. None: it has not ended yet."""
    given = read_object(path, _END_MOST)
    return unpack_end(given) if given.get("run") == invocation else None


def _moment(value: object) -> float | None:
    """Return the value if it is a Unix time that localtime(3) can convert, else None."""
    found = number(value)
    return found if found is not None and 0 <= found < _BEYOND_TIME else None


def _positive(value: object) -> float:
    return max(0.0, number(value) or 0.0)


def read_reported_memory(given: Mapping[str, Any]) -> ReportedMemory | None:
    """Return what vLLM reported about memory, from the state file or from a recorded event; None if nothing of it is valid."""
    weights = given.get("weights")
    sizes = tuple(size for value in weights[:_WORKERS_MOST] if (size := integer(value)) is not None) if isinstance(weights, list) else ()
    found = ReportedMemory(sizes, integer(given.get("cache")), integer(given.get("tokens")))
    return None if found == ReportedMemory() else found


def _progress(value: object) -> LoadProgress | None:
    """Read the progress from an object, or from an array: json writes a named tuple as an array."""
    given = dict(zip(LoadProgress._fields, value, strict=False)) if isinstance(value, list) else mapping(value)
    read = integer(given.get("read"))
    if read is None:
        return None
    figures = integer(given.get("total")), number(given.get("rate")), number(given.get("left"))
    return LoadProgress(read, *figures, given.get("counted") is True)
