"""One run while it is recorded: what is taken down of it, from its first second to what is found out when it is over."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from vllm_safe.launch.state import Cards, State, cards_to_line, gpu_file
from vllm_safe.paths import RECORDER
from vllm_safe.record import begin, evidence, metrics
from vllm_safe.record.cards import InUse, visible_cards
from vllm_safe.record.encode import from_line, mapping, number, text, unpack_event
from vllm_safe.record.files import read_regular, remove, write_whole
from vllm_safe.record.follow import Pace
from vllm_safe.record.heard import read_object
from vllm_safe.record.lines import read_lines
from vllm_safe.record.programs import properties
from vllm_safe.record.run import End, Event, Gpu, Sample
from vllm_safe.record.sample import Sampler
from vllm_safe.record.store import EVENTS_HEAD, SMALL_MOST, Store, open_run, run_id, run_names

SYNC = 5.0  # seconds: what a power cut may take
_LOG_RATE = 500  # bytes a second, on the average, for the last lines of the server ...
_LOG_SOONEST = 10.0  # ... and the least between two times
_GUARD_MOST = 1 << 20  # bytes
_ORDERLY = {"stopped", "refused", "gave-up"}  # ends that no card is to blame for
_MOST_PIDS = 10_000  # that are remembered: compilers come and go by the thousand

Say = Callable[[str], None]


class Asked(Protocol):
    """What tells of the cards: gpus.Cards, imported only where there are any."""

    def ask(self, now: float) -> tuple[Gpu, ...]:
        """What they last said."""


class Recording:
    """One run. now: the monotonic clock; wall: the one on the wall, which may be set at any time. `say` prints a line for the journal."""

    def __init__(self, name: str, invocation: str, runs: str, root: str, say: Say, now: float, wall: float) -> None:  # noqa: PLR0913, PLR0917
        self._name, self._root, self._say = name, root, say
        self._sampler = Sampler(name, root)
        resumed = open_run(runs, name, invocation)
        run = resumed or run_id(wall, invocation, run_names(runs, name))
        self._store = Store(runs, name, run)
        self.start = begin.read_start(name, run, wall, self._sampler.cgroup, root)
        self._begun, self._events_from = now - 1.0, wall - 1.0  # it was not seen at once
        self._textfile = text(begin.read_launch(name, root).get("textfile")).rstrip("/")
        self._pace = Pace()
        self._in_use = InUse(visible_cards(self.start.env, [card["name"] for card in self.start.host.get("cards", ())]))
        self._state: State | None = None
        self._sync_due = self._log_due = self._publish_due = now
        self._log: tuple[str, ...] = ()
        self._guard = b""
        self._pids: set[int] = set()
        self._events: tuple[dict[str, int], dict[str, int]] = ({}, {})
        self._limits_known = False
        self._problem = ""
        if resumed:
            self._go_on(f"{runs}/{name}/{run}", now, wall)
        else:
            self._store.start(self.start)
            restart = self.start.restart
            self.note(Event(wall, "start", f"automatic restart {restart}" if restart else "started", {"restart": restart}))

    def look(self, now: float, wall: float, state: State | None, cards: Asked | None) -> None:
        """A second has passed. state: what the main process last said, if it did yet."""
        self._state = state or self._state
        self._take_guard()
        if self._pace.due(now, state.phase if state else "waiting", self._sampler.glance()):
            self._sample(now, wall, cards)
        if state and state.log != self._log and now >= self._log_due:
            self._log = state.log
            self._store.log(state.log)
            self._log_due = now + max(_LOG_SOONEST, sum(map(len, state.log)) / _LOG_RATE)
        if now >= self._sync_due:
            self._sync_due = now + SYNC
            self._tell(self._store.flush())

    def note(self, event: Event) -> None:
        """Something happened. It is soon on the disk: what follows may be the end of everything."""
        self._store.event(event)
        self._sync_due = 0.0

    def finish(self, end: End | None, now: float, wall: float) -> None:
        """It is over. end: what user vllm's own process said about it, if it could."""
        self._take_guard()
        composed = self._compose(end or End(wall), wall)
        for event in (*self._deaths(composed, now, wall), *self._faults(composed, now, wall)):
            self._store.event(event)
        if self._state:
            self._store.log(self._state.log)
        self._store.end(composed)
        self.close()

    def close(self) -> None:
        """What is in memory goes to the disk: the run has its end, or goes on without us."""
        self._tell(self._store.close())
        remove(f"{self._root}{gpu_file(self._name)}")
        if self._textfile:
            metrics.withdraw(self._textfile, self._name)

    def _deaths(self, end: End, now: float, wall: float) -> list[Event]:
        """Who killed its processes; of a kill that nobody had written down yet, the journal is asked twice."""
        since, unit = max(self._begun, now - evidence.WINDOW), f"vllm@{self._name}.service"
        lines, whole = evidence.read_journal(wall - (now - since) - 1)
        found = evidence.find_deaths(lines, since, unit, self._pids)
        killed = end.exit_code == "killed" or "killed by SIG" in end.reason or end.memory_events.get("oom_kill", 0) > 0
        if not found and (killed or not whole):
            time.sleep(evidence.AGAIN)
            lines, whole = evidence.read_journal(wall - (now - since) - 1)
            found = evidence.find_deaths(lines, since, unit, self._pids)
        return found if found or whole else [Event(wall, "unread", evidence.UNREAD)]

    def _faults(self, end: End, now: float, wall: float) -> list[Event]:
        """What the kernel said of the cards: in the whole run, since one that fell off the bus may be missed hours later."""
        cards = self.start.host.get("cards")
        if not cards or end.cause in _ORDERLY:
            return []
        from vllm_safe.record import faults  # noqa: PLC0415 - patterns that only a machine with cards pays for

        lines = [line for grep in faults.GREPS for line in evidence.read_journal(wall - (now - self._begun) - 1, grep)[0]]
        return faults.find_faults(sorted(lines, key=lambda line: line.at), self._begun, self._pids, cards)

    def _go_on(self, place: str, now: float, wall: float) -> None:
        """A recorder before us began with it."""
        began = number(read_object(f"{place}/start.json", 2 * SMALL_MOST).get("time"))
        self.start = self.start._replace(time=wall if began is None else began)
        self._begun = now - max(0.0, wall - self.start.time)
        self._limits_known = began is not None
        if began is None:
            self._store.start(self.start)
        told = [unpack_event(from_line(line)) for line in read_lines(place, "events", 2 * EVENTS_HEAD)]
        self._events_from = max((event.time for event in told if event and event.kind == "guard"), default=self.start.time - 1.0)

    def _sample(self, now: float, wall: float, cards: Asked | None) -> None:
        gpus = cards.ask(now) if cards else ()
        sample = self._sampler.read(now, wall, self._state, gpus)
        if gpus:
            self._tell_main(self._in_use.look(gpus))
        self._store.sample(sample)
        if found := self._sampler.events("memory.events"):
            self._events = (found, self._sampler.events("memory.swap.events"))
        if len(self._pids) < _MOST_PIDS:
            self._pids.update(self._sampler.processes())
        if self._state and not self._limits_known:  # the cgroup may not have been there when we began
            self._limits_known = True
            start = begin.read_start(self._name, self.start.run, self.start.time, self._sampler.cgroup, self._root)
            if start != self.start:
                self.start = start
                self._store.start(start)
        self._publish(now, sample)

    def _tell_main(self, cards: Cards) -> None:
        """A start that takes memory of the cards gets on, one that keeps them all busy for nothing may not."""
        with suppress(OSError):
            write_whole(f"{self._root}{gpu_file(self._name)}", cards_to_line(cards).encode(), 0o644, sync=False)

    def _publish(self, now: float, sample: Sample) -> None:
        if not self._textfile or now < self._publish_due:
            return
        self._publish_due = now + metrics.EVERY
        try:
            metrics.publish(self._textfile, self.start, sample)
        except OSError as error:
            hint = f"setfacl -m u:{RECORDER}:rwx {self._textfile}"
            if error.errno != errno.EACCES:
                hint = f"systemctl edit vllm-safe-record@.service, section [Service], ReadWritePaths={self._textfile}"
            self._say(f"cannot write {metrics.file_of(self._textfile, self._name)}: {error.strerror}. See: {hint}")
            self._textfile = ""

    def _take_guard(self) -> None:
        """What the guard did to this model since we last looked."""
        content = read_regular(f"{self._root}/run/vllm-safe/guard/{self._name}.jsonl", _GUARD_MOST) or b""
        if content == self._guard:
            return
        known, self._guard = set(self._guard.splitlines()), content
        for line in content.splitlines():
            given = mapping(from_line(line))
            at = number(given.get("time"))
            if line not in known and at is not None and at > self._events_from:
                readings = {key: value for key, value in mapping(given.get("readings")).items() if number(value) is not None}
                self.note(Event(at, "guard", text(given.get("text")), {"act": text(given.get("act")), "readings": readings}))

    def _compose(self, end: End, wall: float) -> End:
        """What user vllm said of the end; where it said nothing, systemd's words and the kernel's."""
        state = self._state or State("", "", 0, 0.0, 0.0, "waiting", 0.0)
        end = end._replace(
            time=wall,
            cause=end.cause or state.cause,
            reason=end.reason or state.reason,
            error=end.error or state.error,
            served=end.served or state.served,
            memory_events=end.memory_events or self._events[0],
            swap_events=end.swap_events or self._events[1],
        )
        if end.result:
            return end
        shown = properties(f"vllm@{self._name}.service", "Result", "ExecMainCode", "ExecMainStatus")
        code = {"1": "exited", "2": "killed", "3": "dumped"}.get(shown.get("ExecMainCode", ""), "")  # CLD_EXITED and so on
        return end._replace(result=shown.get("Result", ""), exit_code=code, exit_status=shown.get("ExecMainStatus", "") if code else "")

    def _tell(self, problem: str) -> None:
        """Once, until it is over."""
        if problem and not self._problem:
            self._say(problem)
        elif self._problem and not problem:
            self._say("recording again")
        self._problem = problem
