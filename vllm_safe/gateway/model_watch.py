"""The states of the models, from the files that their main processes write. A file is read again only after a change."""

from __future__ import annotations

import json
import math
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from vllm_safe.contract.launch_file import launch_file
from vllm_safe.contract.small_files import read_regular
from vllm_safe.contract.state_file import State, state_file
from vllm_safe.contract.untrusted_files import read_state
from vllm_safe.gateway.queue_decision import COMING, DOWN, FAILED, GOING, READY

CONFIG = Path("/etc/vllm-safe/config.yaml")
_SILENT = 120.0  # seconds; the main process of a running server writes a new state every few seconds
_JUMP = 1.0  # seconds by which the clock moves on at once: a suspend of this machine, or a clock that was set
_COARSE = 0.05  # seconds
_LAUNCH_MOST = 1 << 20  # bytes

_PHASES = {"ready": READY, "stopping": GOING, "ended": DOWN}


class SeenModel(NamedTuple):
    """The state of a model. Times are in Unix seconds."""

    phase: str = DOWN
    text: str = ""  # its status, for people
    left: float | None = None  # estimated seconds until it is ready; None: unknown
    ready: float = 0.0  # the time at which it became ready
    used: float = 0.0  # the time of its last request, from any client
    load: float = 0.0  # seconds that its load took
    pinned: bool = False
    problem: str = ""  # the reason why it failed to start
    crashed: bool = False  # it ended by itself
    refused: bool = False  # the checks before the start refused it: perhaps because of another model, which may have stopped since
    written: float = 0.0  # the time at which its file was written; 0: there is none


_NO_STATE = SeenModel()


class ModelWatch:
    """Reads the state files. Looking at an unchanged file costs one stat(2)."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[tuple[int, int, int], SeenModel]] = {}
        self._loads: dict[str, float] = {}  # by model: how long its last load took
        self._failures: dict[str, SeenModel] = {}  # starts that failed before there was a process to write a state
        self._ahead = _ahead()
        self._jumped = -math.inf  # by the monotonic clock: when the clock was last seen to have jumped

    def look(self, name: str) -> SeenModel:
        """Return the present state of a model."""
        found, failure = self._look(name), self._failures.get(name)
        if failure is None:
            return found
        if found.written > failure.written or _changed_since(name, failure.written):
            del self._failures[name]
            return found
        return failure

    def note_failure(self, name: str, problem: str) -> None:
        """Record that a start failed before its main process could write a reason."""
        self._failures[name] = SeenModel(FAILED, problem=problem, written=time.time())

    def _look(self, name: str) -> SeenModel:
        path = state_file(name)
        try:
            status = path.lstat()
        except OSError:
            return _NO_STATE
        mark = (status.st_mtime_ns, status.st_ino, status.st_size)
        known = self._seen.get(name)
        if known is None or known[0] != mark:
            known = (mark, self._judge(name, read_state(path)))
            # A file that has just been written may change again with the same time: the clock of the file system is coarse.
            if time.time() - status.st_mtime > _COARSE:
                self._seen[name] = known
        found = known[1]
        if found.phase not in {DOWN, FAILED} and self._is_silent(found.written):
            return found._replace(phase=DOWN)
        if found.phase == FAILED and _changed_since(name, found.written):
            return found._replace(phase=DOWN)
        return found

    def _is_silent(self, written: float) -> bool:
        """Return whether the main process has written nothing for long. While the machine was suspended, it could not."""
        ahead = _ahead()
        if abs(ahead - self._ahead) > _JUMP:
            self._jumped = time.monotonic()
        self._ahead = ahead
        return min(time.time() - written, time.monotonic() - self._jumped) > _SILENT

    def last_load(self, name: str) -> float | None:
        """Return how many seconds the last load took that this process saw."""
        return self._loads.get(name)

    def _judge(self, name: str, state: State | None) -> SeenModel:
        if state is None:
            return _NO_STATE
        phase = _PHASES.get(state.phase, COMING)
        load = max(state.since - state.started, 0.0) if phase == READY else 0.0
        if phase == READY:
            self._loads[name] = load
        problem = ""
        crashed = phase == DOWN and state.cause not in {"", "stopped", "room", "idle"}
        if crashed and not state.served:
            phase = FAILED
            problem = f"{name} failed to start: {_why(name, state)}. See: vllm-safe why {name}"
        left = state.progress.left if state.progress is not None else None
        used = state.used or state.since
        return SeenModel(
            phase=phase,
            text=state.text,
            left=left,
            ready=state.since,
            used=used,
            load=load,
            pinned=_is_pinned(name),
            problem=problem,
            crashed=crashed,
            refused=state.cause == "refused",
            written=state.time,
        )


def _why(name: str, state: State) -> str:
    """Return why a start failed, without a full stop: the status, which explains the error that ended the server, or else the reason."""
    text = (state.text or state.reason or "its main process did not say why").rstrip(".")
    return f"it {text.removeprefix(f'{name} ')}" if text.startswith(f"{name} ") else text


def _ahead() -> float:
    """Return by how much the clock is ahead of the monotonic one, which stands still while the machine is suspended."""
    return time.time() - time.monotonic()


def _is_pinned(name: str) -> bool:
    """Return whether a person started the model: its launch file says so."""
    content = read_regular(launch_file(name), _LAUNCH_MOST)
    try:
        launch = json.loads(content or b"{}")
    except ValueError:
        return True
    return not (isinstance(launch, dict) and launch.get("request"))


def _changed_since(name: str, moment: float) -> bool:
    """Return whether another start may succeed: the configuration, or what was decided for the start, is newer."""
    for path in (CONFIG, launch_file(name)):
        with suppress(OSError):
            if path.stat().st_mtime > moment:
                return True
    return False
