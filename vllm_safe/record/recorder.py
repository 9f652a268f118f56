"""One model's recorder: looks at what there is, asks follow.py what that means, and has it done."""

from __future__ import annotations

import os
import time
from typing import Any

from vllm_safe.launch.state import STATE_FOLDER, State
from vllm_safe.record import begin, evidence, metrics
from vllm_safe.record.encode import from_line, mapping, number, text, unpack_event
from vllm_safe.record.files import read_regular
from vllm_safe.record.follow import Begin, Finish, Follow, Note, Pace, Seen
from vllm_safe.record.heard import read_ended, read_object, read_state
from vllm_safe.record.lines import read_lines
from vllm_safe.record.programs import properties
from vllm_safe.record.run import End, Event, Gpu, Sample, Start
from vllm_safe.record.sample import Sampler
from vllm_safe.record.store import EVENTS_HEAD, SMALL_MOST, Store, open_run, run_id, run_names

SYNC = 5.0  # seconds: what a power cut may take
_LOG_RATE = 500  # bytes a second, on the average, for the last lines of the server
_LOG_SOONEST = 10.0
_GUARD_MOST = 1 << 20  # bytes
_ALIVE = {"running", "start", "start-pre", "start-post", "reload", "condition", "auto-restart"}  # SubState


class Recorder:
    """Everything is below `root` ("" for this machine). `say` prints a line for the journal."""

    def __init__(self, name: str, runs: str, root: str = "", say: Any = print) -> None:  # noqa: ANN401
        self._name, self._runs, self._root, self._say = name, runs, root, say
        self._unit = f"vllm@{name}.service"
        self._states = f"{root}{STATE_FOLDER}"
        self._sampler = Sampler(name, root)
        ended = [run for run in _listed(runs, name) if os.path.exists(f"{runs}/{name}/{run}/end.json")]
        self._follow = Follow(frozenset(run[-8:] for run in ended))
        self._cards: Any = None
        self._reset()

    def look(self, now: float, wall: float) -> None:
        """Once a second. now: monotonic; wall: the clock on the wall."""
        seen = self._see()
        for action in self._follow.see(now, wall, seen):
            self._do(action, now, wall)
        if self._store is None:
            return
        self._take_guard(wall)
        state = seen.state
        if self._pace.due(now, state.phase if state else "waiting", self._sampler.glance()):
            self._sample(now, wall, state)
        if state and state.log != self._log and now >= self._log_due:
            self._log = state.log
            self._store.log(state.log)
            self._log_due = now + max(_LOG_SOONEST, sum(map(len, state.log)) / _LOG_RATE)
        if now >= self._sync_due:
            self._sync_due = now + SYNC
            self._tell(self._store.flush())

    def leave(self, now: float, wall: float) -> bool:
        """We are to end: whether the run has its end, or goes on without us. Else it is worth asking again."""
        if self._store is None:
            return True
        seen = self._see()
        for action in self._follow.leave(seen):
            self._do(action, now, wall)
        return self._store is None or bool(seen.invocation)

    def close(self) -> None:
        """What is in memory goes to the disk."""
        if self._store is not None:
            self._tell(self._store.close())
        if self._metrics:
            metrics.withdraw(self._metrics, self._name)

    # --- what there is

    def _see(self) -> Seen:
        invocation = self._invocation()
        state = read_state(f"{self._states}/{self._name}.json")
        current = self._follow.invocation or invocation
        if state and state.run != current:
            state = None
        if state and (self._state is None or state.time != self._state.time):
            self._state = state
        end = read_ended(f"{self._states}/{self._name}.end.json", current) if current else None
        return Seen(invocation, state, end if end and self._is_over(end) else None)

    def _invocation(self) -> str:
        """Of the unit, as systemd keeps it for journald; "" while it is inactive."""
        try:
            found = os.readlink(f"{self._root}/run/systemd/units/invocation:{self._unit}")
        except OSError:
            return ""
        return found if len(found) == 32 and found.isalnum() else ""

    def _is_over(self, end: End) -> bool:
        """Whether systemd agrees. The server runs as the user that writes the file, and may say that it has ended."""
        if end != self._checked:
            self._checked, self._over = end, properties(self._unit, "SubState", "InvocationID")
        shown = self._over
        same = shown.get("InvocationID", self._follow.invocation) == self._follow.invocation
        if same and shown.get("SubState") in _ALIVE - {"auto-restart"}:
            self._checked = None  # asked again the next time
            return False
        return True

    # --- what is to be done

    def _do(self, action: Begin | Note | Finish, now: float, wall: float) -> None:
        match action:
            case Begin(invocation):
                self._begin(invocation, now, wall)
            case Note(event):
                self._note(event)
            case Finish(end):
                self._finish(end, now, wall)

    def _begin(self, invocation: str, now: float, wall: float) -> None:
        self._reset()
        resumed = open_run(self._runs, self._name, invocation)
        run = resumed or run_id(wall, invocation)
        self._store = Store(self._runs, self._name, run)
        self._begun = now
        self._metrics = text(begin.read_launch(self._name, self._root).get("metrics_folder")).rstrip("/")
        if resumed:
            place = f"{self._runs}/{self._name}/{run}"
            self._start = begin.read_start(self._name, run, wall, self._sampler.cgroup, self._root)
            before = read_object(f"{place}/start.json", 2 * SMALL_MOST)
            self._guard_from = max((_time_of(line) for line in read_lines(place, "events", 2 * EVENTS_HEAD)), default=0.0)
            if (began := number(before.get("time"))) is not None:
                self._start = self._start._replace(time=began)
                self._begun = now - max(0.0, wall - began)
            return
        self._start = begin.read_start(self._name, run, wall, self._sampler.cgroup, self._root)
        self._store.start(self._start)
        restart = self._start.restart
        self._note(Event(wall, "start", f"automatic restart {restart} within the hour" if restart else "started", {"restart": restart}))
        if self._cards is None and self._start.host.get("gpus"):
            self._cards = _open_cards(self._say)

    def _note(self, event: Event) -> None:
        if self._store is not None:
            self._store.event(event)
            self._sync_due = 0.0  # soon on the disk: what follows may be the end of everything

    def _sample(self, now: float, wall: float, state: State | None) -> None:
        gpus: tuple[Gpu, ...] = self._cards.ask(now) if self._cards else ()
        sample = self._sampler.read(now, wall, state, gpus)
        if self._store is None or self._start is None:
            return
        self._store.sample(sample)
        if found := self._sampler.events("memory.events"):
            self._events = (found, self._sampler.events("memory.swap.events"))
            self._pids.update(self._sampler.processes())
        if not self._limits_known and sample.memory is not None and state:  # the cgroup was not there yet when we began
            self._limits_known = True
            start = begin.read_start(self._name, self._start.run, self._start.time, self._sampler.cgroup, self._root)
            if start.limits != self._start.limits:
                self._start = start
                self._store.start(start)
        self._publish(now, sample)

    def _publish(self, now: float, sample: Sample) -> None:
        if not self._metrics or self._start is None or now < self._publish_due:
            return
        self._publish_due = now + metrics.EVERY
        try:
            metrics.publish(self._metrics, self._start, sample)
        except OSError as error:
            hint = f"systemctl edit vllm-safe-record@.service: [Service] ReadWritePaths={self._metrics}"
            self._say(f"cannot write {metrics.file_of(self._metrics, self._name)}: {error.strerror} ({hint})")
            self._metrics = ""

    def _take_guard(self, wall: float) -> None:
        """What the guard did to this model since we last looked."""
        content = read_regular(f"{self._root}/run/vllm-safe/guard/{self._name}.jsonl", _GUARD_MOST) or b""
        if content == self._guard:
            return
        known, self._guard = set(self._guard.splitlines()), content
        since = max(self._guard_from, (self._start.time if self._start else wall) - 1.0)
        for line in content.splitlines():
            given = mapping(from_line(line))
            at = number(given.get("time"))
            if line not in known and at is not None and at > since:
                readings = {key: value for key, value in mapping(given.get("readings")).items() if number(value) is not None}
                self._note(Event(at, "guard", text(given.get("text")), {"act": text(given.get("act")), "readings": readings}))

    def _finish(self, end: End | None, now: float, wall: float) -> None:
        store = self._store
        if store is None:
            return
        since = max(self._begun, now - evidence.WINDOW)
        for event in evidence.find_deaths(evidence.read_journal(), since, self._unit, self._is_ours):
            store.event(event)
        state = self._state
        if state and state.log:
            store.log(state.log)
        store.end(self._compose(end, wall))
        self._tell(store.close())
        if self._metrics:
            metrics.withdraw(self._metrics, self._name)
        self._reset()

    def _compose(self, end: End | None, wall: float) -> End:
        """What user vllm said of the end, over which go systemd's own words, and the kernel's where it said nothing."""
        end = end or End(wall)
        state = self._state
        end = end._replace(
            time=wall, cause=end.cause or (state.cause if state else ""), reason=end.reason or (state.reason if state else "")
        )
        end = end._replace(memory_events=end.memory_events or self._events[0], swap_events=end.swap_events or self._events[1])
        if end.result:
            return end
        shown = properties(self._unit, "Result", "ExecMainCode", "ExecMainStatus")
        code = {"1": "exited", "2": "killed", "3": "dumped"}.get(shown.get("ExecMainCode", ""), "")
        return end._replace(result=shown.get("Result", ""), exit_code=code, exit_status=shown.get("ExecMainStatus", "") if code else "")

    def _is_ours(self, pid: int, uid: int) -> bool:
        return pid in self._pids or (uid > 0 and not self._pids and uid == _owner(self._states))

    def _tell(self, problem: str) -> None:
        """Once, until it is over."""
        if problem and not self._problem:
            self._say(problem)
        elif self._problem and not problem:
            self._say("recording again")
        self._problem = problem

    def _reset(self) -> None:
        self._store: Store | None = None
        self._start: Start | None = None
        self._state: State | None = None
        self._pace = Pace()
        self._begun = self._sync_due = self._log_due = self._publish_due = self._guard_from = 0.0
        self._log: tuple[str, ...] = ()
        self._guard = b""
        self._pids: set[int] = set()
        self._events: tuple[dict[str, int], dict[str, int]] = ({}, {})
        self._checked: End | None = None
        self._over: dict[str, str] = {}
        self._metrics = self._problem = ""
        self._limits_known = False


def _listed(runs: str, name: str) -> list[str]:
    try:
        return run_names(runs, name)
    except OSError:
        return []


def _time_of(line: bytes) -> float:
    event = unpack_event(from_line(line))
    return event.time if event else 0.0


def _owner(path: str) -> int:
    try:
        return os.stat(path).st_uid
    except OSError:
        return -1


def _open_cards(say: Any) -> Any:  # noqa: ANN401
    from vllm_safe.record.gpus import Cards  # noqa: PLC0415 - 10 MB that only a machine with cards pays

    try:
        return Cards()
    except OSError as error:
        say(f"no figures of the cards: {error}")
        return None


def clocks() -> tuple[float, float]:
    """The monotonic clock and the one on the wall."""
    return time.monotonic(), time.time()
