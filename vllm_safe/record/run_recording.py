"""The recording of one run, from its first second to the evidence that is collected after its end."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from vllm_safe.common.paths import RECORDER
from vllm_safe.common.systemctl import unit_properties
from vllm_safe.contract.recorded_run import End, Event, Gpu, Sample
from vllm_safe.contract.run_encoding import from_line, mapping, number, pack_gpus, text, to_line, unpack_event
from vllm_safe.contract.small_files import read_regular, remove_if_possible, write_whole
from vllm_safe.contract.state_file import State, cards_file, cards_to_line, gpu_file
from vllm_safe.contract.untrusted_files import read_object
from vllm_safe.record import kill_evidence, prometheus, run_start
from vllm_safe.record.card_usage import CardReadings, CardsInUse, visible_cards
from vllm_safe.record.json_lines import read_lines
from vllm_safe.record.run_store import EVENTS_HEAD, SMALL_MOST, RunStore, open_run, run_id, run_names
from vllm_safe.record.run_tracker import SamplingPace
from vllm_safe.record.sampler import Sampler

SYNC = 5.0  # seconds of data that a power cut may destroy
_LOG_RATE = 500  # bytes per second, on average, for the last lines of the server ...
_LOG_SOONEST = 10.0  # ... and the least number of seconds between two writings
_GUARD_MOST = 1 << 20  # bytes
_ORDERLY = {"stopped", "room", "idle", "refused", "gave-up"}  # ends that no GPU can have caused
_MOST_PIDS = 10_000  # process ids that are kept: compilers start processes by the thousand

Say = Callable[[str], None]


class CardReader(Protocol):
    """The interface of nvml_usage.NvmlCards, which is imported only on machines with GPUs."""

    lost: frozenset[int]

    def ask(self, now: float) -> tuple[Gpu, ...]:
        """Return the last reading of the GPUs."""


class RunRecording:
    """The recording of one run.

    now: seconds of the monotonic clock. wall: Unix time, which may be set at any time. say: prints a line for the journal.
    """

    def __init__(self, name: str, invocation: str, runs: str, root: str, say: Say, now: float, wall: float) -> None:  # noqa: PLR0913, PLR0917
        self._name, self._root, self._say = name, root, say
        self._sampler = Sampler(name, root)
        resumed = open_run(runs, name, invocation)
        run = resumed or run_id(wall, invocation, run_names(runs, name))
        self._store = RunStore(runs, name, run)
        self.start = run_start.read_start(name, run, wall, self._sampler.cgroup, root)
        self._begun, self._events_from = now - 1.0, wall - 1.0  # the start may have been observed up to a second late
        self._textfile = text(run_start.read_launch(name, root).get("textfile")).rstrip("/")
        self._pace = SamplingPace()
        self._in_use = CardsInUse(visible_cards(self.start.env, [card["name"] for card in self.start.host.get("cards", ())]))
        self._readings = CardReadings()
        self._lost: frozenset[int] = frozenset()
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

    def look(self, now: float, wall: float, state: State | None, cards: CardReader | None) -> None:
        """Record what is due; to be called each second. state: the last state of the main process, if there is one."""
        self._state = state or self._state
        self._take_guard()
        if cards:
            self._look_at_cards(now, wall, cards)
        if self._pace.due(now, state.phase if state else "waiting", self._sampler.glance()):
            self._sample(now, wall)
        if state and state.log != self._log and now >= self._log_due:
            self._log = state.log
            self._store.log(state.log)
            self._log_due = now + max(_LOG_SOONEST, sum(map(len, state.log)) / _LOG_RATE)
        if now >= self._sync_due:
            self._sync_due = now + SYNC
            self._log_problem(self._store.flush())

    def note(self, event: Event) -> None:
        """Record an event. It is written to the disk at the next `look`, since the machine may go down soon."""
        self._store.event(event)
        self._sync_due = 0.0

    def finish(self, end: End | None, now: float, wall: float) -> None:
        """Record the end. end: the report of user vllm's own process, if there is one."""
        self._take_guard()
        composed = self._compose(end or End(wall), wall)
        for event in (*self._deaths(composed, now, wall), *self._faults(composed, now, wall)):
            self._store.event(event)
        if self._state:
            self._store.log(self._state.log)
        self._store.end(composed)
        self.close()

    def close(self) -> None:
        """Write the remaining data to the disk: the run has ended, or continues without a recorder."""
        self._log_problem(self._store.close())
        for file in (gpu_file(self._name), cards_file(self._name)):
            remove_if_possible(f"{self._root}{file}")
        if self._textfile:
            prometheus.withdraw_metrics(self._textfile, self._name)

    def _deaths(self, end: End, now: float, wall: float) -> list[Event]:
        """Return the kills of its processes. The journal is read twice if it does not contain a kill that has happened."""
        since, unit = max(self._begun, now - kill_evidence.WINDOW), f"vllm@{self._name}.service"
        lines, whole = kill_evidence.read_journal(wall - (now - since) - 1)
        found = kill_evidence.find_deaths(lines, since, unit, self._pids)
        killed = end.exit_code == "killed" or "killed by SIG" in end.reason or end.memory_events.get("oom_kill", 0) > 0
        if not found and (killed or not whole):
            time.sleep(kill_evidence.AGAIN)
            lines, whole = kill_evidence.read_journal(wall - (now - since) - 1)
            found = kill_evidence.find_deaths(lines, since, unit, self._pids)
        return found if found or whole else [Event(wall, "unread", kill_evidence.UNREAD)]

    def _faults(self, end: End, now: float, wall: float) -> list[Event]:
        """Return the kernel's messages about GPUs in the whole run, since a GPU that fell off the bus may be noticed hours later."""
        cards = self.start.host.get("cards")
        if not cards or end.cause in _ORDERLY:
            return []
        from vllm_safe.record import card_faults  # noqa: PLC0415 - patterns that are only needed on a machine with GPUs

        lines = [line for grep in card_faults.GREPS for line in kill_evidence.read_journal(wall - (now - self._begun) - 1, grep)[0]]
        return card_faults.find_faults(sorted(lines, key=lambda line: line.at), self._begun, self._pids, cards)

    def _go_on(self, path: str, now: float, wall: float) -> None:
        """Continue a run that an earlier recorder began."""
        began = number(read_object(f"{path}/start.json", 2 * SMALL_MOST).get("time"))
        self.start = self.start._replace(time=wall if began is None else began)
        self._begun = now - max(0.0, wall - self.start.time)
        self._limits_known = began is not None
        if began is None:
            self._store.start(self.start)
        events = [unpack_event(from_line(line)) for line in read_lines(path, "events", 2 * EVENTS_HEAD)]
        self._events_from = max((event.time for event in events if event and event.kind == "guard"), default=self.start.time - 1.0)

    def _sample(self, now: float, wall: float) -> None:
        sample = self._sampler.read(now, wall, self._state, self._readings.take())
        self._store.sample(sample)
        if found := self._sampler.events("memory.events"):
            self._events = (found, self._sampler.events("memory.swap.events"))
        if len(self._pids) < _MOST_PIDS:
            self._pids.update(self._sampler.processes())
        if self._state and not self._limits_known:  # the cgroup may not have existed when the recording began
            self._limits_known = True
            start = run_start.read_start(self._name, self.start.run, self.start.time, self._sampler.cgroup, self._root)
            if start != self.start:
                self.start = start
                self._store.start(start)
        self._publish(now, sample)

    def _look_at_cards(self, now: float, wall: float, cards: CardReader) -> None:
        """Read the GPUs, each second: the main process needs to know their usage, and heat comes and goes between two samples."""
        gpus = cards.ask(now)
        self._readings.add(gpus)
        if gpus:
            self._write_gpu_files(gpus)
        for index in sorted(cards.lost - self._lost):
            self._lost |= {index}
            known = self.start.host.get("cards", [])
            pci = str(known[index]["pci"]).rpartition(".")[0].lower() if index < len(known) else ""
            said = f"GPU {index} has fallen off the bus, as NVML reports"
            self.note(Event(wall, "nvidia", said, {"kind": "lost", "pci": pci, "own": None, "times": 1}))

    def _write_gpu_files(self, gpus: tuple[Gpu, ...]) -> None:
        """Write the usage for the main process, and all figures for `vllm-safe status`.

        To the main process, growing memory is progress, but GPUs that are all busy may wait for each other.
        """
        texts = {gpu_file(self._name): cards_to_line(self._in_use.look(gpus)), cards_file(self._name): to_line(pack_gpus(gpus))}
        for file, content in texts.items():
            with suppress(OSError):
                write_whole(f"{self._root}{file}", content.encode(), 0o644, sync=False)

    def _publish(self, now: float, sample: Sample) -> None:
        if not self._textfile or now < self._publish_due:
            return
        self._publish_due = now + prometheus.EVERY
        try:
            prometheus.publish_metrics(self._textfile, self.start, sample)
        except OSError as error:
            hint = f"setfacl -m u:{RECORDER}:rwx {self._textfile}"
            if error.errno != errno.EACCES:
                hint = f"systemctl edit vllm-safe-record@.service, section [Service], ReadWritePaths={self._textfile}"
            self._say(f"cannot write {prometheus.textfile_path(self._textfile, self._name)}: {error.strerror}. To permit it: {hint}")
            self._textfile = ""

    def _take_guard(self) -> None:
        """Record the actions of the guard on this model since the last call."""
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
        """Complete the report of user vllm about the end from the last state, the cgroup and systemd."""
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
        shown = unit_properties(f"vllm@{self._name}.service", "Result", "ExecMainCode", "ExecMainStatus")
        code = {"1": "exited", "2": "killed", "3": "dumped"}.get(shown.get("ExecMainCode", ""), "")  # CLD_EXITED and so on
        return end._replace(result=shown.get("Result", ""), exit_code=code, exit_status=shown.get("ExecMainStatus", "") if code else "")

    def _log_problem(self, problem: str) -> None:
        """Log a problem once, until it is over. problem: "" for none."""
        if problem and not self._problem:
            self._say(problem)
        elif self._problem and not problem:
            self._say("recording has resumed")
        self._problem = problem
