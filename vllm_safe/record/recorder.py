"""The recorder of one model: it observes the unit, has run_tracker.py decide, and has run_recording.py record."""

from __future__ import annotations

import os
from collections.abc import Iterable

from vllm_safe.common.systemctl import unit_properties
from vllm_safe.contract.recorded_run import End
from vllm_safe.contract.run_encoding import text
from vllm_safe.contract.state_file import STATE_FOLDER
from vllm_safe.contract.untrusted_files import read_ended, read_object, read_state
from vllm_safe.record.run_recording import CardReader, RunRecording, Say
from vllm_safe.record.run_start import boot_id
from vllm_safe.record.run_store import SMALL_MOST, open_run, run_names
from vllm_safe.record.run_tracker import Action, AddEvent, BeginRun, FinishRun, RunTracker, UnitObservation

LOOK, LOOK_OUT = 1.0, 0.2  # seconds between two observations during a run, and while waiting for the next run
_GOES_ON = {"condition", "start-pre", "start", "start-post", "running", "reload"}  # SubState= of a service that has not ended


class Recorder:
    """The recorder of one model. root: "" for this machine. runs: the directory of the runs. say: prints a line for the journal."""

    def __init__(self, name: str, runs: str, root: str, say: Say) -> None:
        self._name, self._runs, self._root, self._say = name, runs, root, say
        self._state_path = f"{root}{STATE_FOLDER}/{name}"
        self._refuted = self._last_ended()  # the invocation of an earlier start, or a false one
        self._follow = RunTracker(frozenset(_ended(runs, name)))
        self._recording: RunRecording | None = None
        self._cards: CardReader | None = None
        self._doubted: End | None = None

    @property
    def pause(self) -> float:
        """Seconds until the next call of `look`."""
        return LOOK if self._recording else LOOK_OUT

    def catch_up(self, now: float, wall: float) -> None:
        """Record the end of a run that ended while no recorder was running, because it had been killed. To be called first."""
        invocation = self._last_ended()
        end = read_ended(f"{self._state_path}.end.json", invocation)
        run = open_run(self._runs, self._name, invocation) if len(invocation) == 32 and invocation != self._invocation() else None
        if not end or not run:
            return
        boot = read_object(f"{self._runs}/{self._name}/{run}/start.json", 2 * SMALL_MOST).get("boot")
        if boot == boot_id(self._root):
            RunRecording(self._name, invocation, self._runs, self._root, self._say, now, wall).finish(end, now, wall)

    def look(self, now: float, wall: float) -> None:
        """Observe and record; to be called after each `pause`. now: seconds of the monotonic clock. wall: Unix time."""
        seen = self._see()
        self._do(self._follow.see(now, wall, seen), now, wall)
        if self._recording:
            self._recording.look(now, wall, seen.state, self._cards)

    def leave(self, now: float, wall: float) -> bool:
        """Handle the request to stop; return whether there is nothing left to wait for."""
        self.look(now, wall)  # a start that failed at once stops the recorder too: it may not have been observed yet
        if self._recording:
            self._do(self._follow.leave(self._see()), now, wall)
        return self._recording is None

    def close(self) -> None:
        """Close the files; the run may continue without a recorder."""
        if self._recording:
            self._recording.close()

    def _see(self) -> UnitObservation:
        invocation = self._invocation()
        if not invocation and not self._follow.invocation:
            invocation = self._missed()
        current = self._follow.invocation or invocation
        if not current:
            return UnitObservation()
        state, end = read_state(f"{self._state_path}.json"), read_ended(f"{self._state_path}.end.json", current)
        return UnitObservation(
            invocation, state if state and state.run == current else None, end if end and self._is_over(end, current) else None
        )

    def _invocation(self) -> str:
        """Return the invocation id of the unit, which systemd keeps for journald; "" while the unit is inactive."""
        try:
            found = os.readlink(f"{self._root}/run/systemd/units/invocation:vllm@{self._name}.service")
        except OSError:
            return ""
        return found if len(found) == 32 and found.isalnum() else ""

    def _missed(self) -> str:
        """Return a start that ended before it was observed, or "": its end file names it, and systemd confirms it as the last one."""
        last = self._last_ended()
        if len(last) != 32 or last == self._refuted or self._follow.knows(last):
            return ""
        known = unit_properties(f"vllm@{self._name}.service", "InvocationID").get("InvocationID")
        if known == last:
            return last
        if known is not None:  # a missing answer refutes nothing
            self._refuted = last
        return ""

    def _last_ended(self) -> str:
        return text(read_object(f"{self._state_path}.end.json", SMALL_MOST).get("run"))

    def _is_over(self, end: End, current: str) -> bool:
        """Return whether systemd confirms the end: the server runs as the user that writes the file, and could fake an end."""
        if end == self._doubted:
            return False
        shown = unit_properties(f"vllm@{self._name}.service", "SubState", "InvocationID")
        if shown.get("InvocationID") == current and shown.get("SubState") in _GOES_ON:
            self._doubted = end
            return False
        return True

    def _do(self, actions: Iterable[Action], now: float, wall: float) -> None:
        for action in actions:
            match action:
                case BeginRun(invocation):
                    self._recording = RunRecording(self._name, invocation, self._runs, self._root, self._say, now, wall)
                    self._cards = self._cards or self._open_cards(self._recording)
                case AddEvent(event) if self._recording:
                    self._recording.note(event)
                case FinishRun(end) if self._recording:
                    self._recording.finish(end, now, wall)
                    self._recording = None

    def _open_cards(self, recording: RunRecording) -> CardReader | None:
        if not recording.start.host.get("gpus"):
            return None
        from vllm_safe.record.nvml_usage import NvmlCards  # noqa: PLC0415 - 10 MB that are only needed on a machine with GPUs

        try:
            return NvmlCards()
        except OSError as error:
            self._say(f"no GPU metrics are recorded: {error}")
            return None


def _ended(runs: str, name: str) -> Iterable[str]:
    """Return the first 8 digits of the invocations that are recorded to their end."""
    try:
        names = run_names(runs, name)
    except OSError:
        return ()
    return [run[-8:] for run in names if os.path.exists(f"{runs}/{name}/{run}/end.json")]
