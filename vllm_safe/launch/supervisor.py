"""The loop of the main process: one thread that waits for all its events at once, and never blocks on a single one."""

from __future__ import annotations

import json
import os
import select
import signal
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from vllm_safe import __version__
from vllm_safe.causes.first_trouble import FirstTrouble
from vllm_safe.common.errors import EXIT_MISUSE
from vllm_safe.common.notify import notify
from vllm_safe.common.printable_text import printable
from vllm_safe.common.signal_pipe import asks_to_stop, open_signal_pipe, read_signals
from vllm_safe.contract import state_file
from vllm_safe.contract.launch_file import Launch
from vllm_safe.contract.room_note import read_room_note, room_note
from vllm_safe.launch import hang_evidence
from vllm_safe.launch.actions import Action, AskServer, Instruction, LogLine, NotifySystemd, Quit, SendSignal
from vllm_safe.launch.connections import count_connections
from vllm_safe.launch.http_probe import TIMEOUT, Probe
from vllm_safe.launch.lifecycle import Lifecycle
from vllm_safe.launch.liveness import MetricsReader
from vllm_safe.launch.node_group import HOLD, NodeGroup
from vllm_safe.launch.node_link import NodeLink
from vllm_safe.launch.node_messages import Alive, Farewell
from vllm_safe.launch.processes import Process, checkpoint_sizes, files_digest, own_cgroup, read_processes
from vllm_safe.launch.resolver import Resolver
from vllm_safe.launch.server_output import Output
from vllm_safe.launch.server_process import Server, record_engine_files

DRAIN = 2.0  # seconds for copying the rest of the output of a server that has ended
PATIENCE = 30.0  # seconds for an answer of a serving server, which may be busy
HEARD = 1 << 18  # bytes of output per second that are searched for phases: a flood contains no new information
SIFTED = 1 << 20  # bytes of output per second that are searched for trouble: eight workers print their stacks at once
WRITE_EVERY, WRITE_STEADY = 1.0, 10.0  # seconds between two writings of states that differ, and of states that do not
SWEEPS = 10  # attempts to kill all processes: a killed process may have forked just before

_STDOUT = 1


def supervise(launch: Launch, env: dict[str, str]) -> int:
    """Run the server of `launch` with this environment until it ends or systemd stops it; return the exit code of the main process."""
    return _Supervisor(launch, env).run()


class _Held(NamedTuple):
    """The end of a server that is not reported yet. status: its wait status. text: the reason if no other machine reports one."""

    status: int
    until: float
    text: str


class _Supervisor:
    def __init__(self, launch: Launch, env: dict[str, str]) -> None:
        self._signals = open_signal_pipe((signal.SIGTERM, signal.SIGINT, signal.SIGCHLD))
        cause, before = _end_before(launch)
        # After an end that another machine caused, that machine pauses, and this one waits for it.
        self._launch, self._env = launch._replace(pause=0.0) if cause in {"node", "network"} else launch, env
        self._server: Server | None = None
        self._output = Output(_STDOUT, self._read_output)
        self._unit = _unit()
        sizes = checkpoint_sizes(Path(launch.checkpoint)) if launch.checkpoint else ()
        self._life = Lifecycle(self._launch, time.monotonic(), time.time(), _time_of_day, sizes=sizes, watchdog=_watchdog(), before=before)
        self._trouble = FirstTrouble()
        self._started = time.time()
        self._resolver = Resolver()
        self._nodes: NodeLink | None = None
        self._held: _Held | None = None
        self._probes: dict[str, tuple[Probe, MetricsReader]] = {}
        self._searched, self._searched_until = 0, 0.0
        self._cards = state_file.NO_CARDS
        self._written, self._written_at = state_file.State("", "", 0, 0, 0, "", 0), 0.0
        self._exit_code: int | None = None
        self._has_served = False

    def run(self) -> int:
        for line in self._launch.summary:
            self._say(LogLine(line))
        if self._life.phase == "starting":
            notify(STATUS="starting")
            self._start()
        while self._exit_code is None:
            self._do(self._life.tick(time.monotonic(), time.time()))
            self._meet()
            self._write_state()
            if self._life.served and not self._has_served:
                self._has_served = True
                record_engine_files(self._launch)
            if self._exit_code is None:
                self._wait()
                self._output.advance()
                self._take_signals()
                self._advance_probes()
        self._output.finish(DRAIN)
        self._say_farewell()
        self._write_state(last=True)
        return self._exit_code

    def _wait(self) -> None:
        """Wait until a descriptor is ready or a timer is due."""
        probes = [probe for probe, _ in self._probes.values()]
        reading = [self._signals, *self._output.reading, *(handle for probe in probes for handle in probe.reading)]
        writing = [*self._output.writing, *(handle for probe in probes for handle in probe.writing)]
        if self._nodes:
            reading += self._nodes.reading
            writing += self._nodes.writing
        timers = (
            self._life.due,
            self._nodes.due if self._nodes else None,
            self._held.until if self._held else None,
            *(probe.deadline for probe in probes),
        )
        due = min((at for at in timers if at is not None), default=None)
        select.select(reading, writing, (), None if due is None else min(max(0.0, due - time.monotonic()), 3600.0))

    def _take_signals(self) -> None:
        numbers = read_signals(self._signals)
        if asks_to_stop(numbers):
            room_for = read_room_note(room_note(self._launch.name))
            self._do(self._life.asked_to_stop(time.monotonic(), time.time(), room_for))
        if signal.SIGCHLD in numbers and self._server and (status := self._server.reap()) is not None:
            self._output.finish(DRAIN)
            if not self._holds_end(status):
                self._end(status)

    def _end(self, status: int) -> None:
        self._held = None
        self._do(self._life.exited(time.monotonic(), time.time(), status, self._trouble.lines(), self._output.lines()))

    def _holds_end(self, status: int) -> bool:
        """Return whether to wait, before the end is reported, for another machine, whose end may be the cause of this one."""
        if not (nodes := self._nodes) or nodes.group.verdict or self._life.phase in {"stopping", "ended"}:
            return False
        line = ""
        with suppress(Exception):  # as in explain_end: the package may have been replaced meanwhile
            from vllm_safe.launch.node_blame import find_lost_connection  # noqa: PLC0415 - patterns that are only needed at an end

            line = find_lost_connection(self._trouble.lines(), self._output.lines(), served=self._life.served)
        if line:
            self._server = None
            what = f"the server on {nodes.group.me} lost its connection to another machine, which gave no reason: {line.strip()[-200:]}"
            self._held = _Held(status, time.monotonic() + HOLD, what)
            nodes.end(Farewell(what, never=False, elsewhere=True))
            self._kill()
        return bool(line)

    def _advance_probes(self) -> None:
        for what, (probe, figures) in list(self._probes.items()):
            probe.advance(time.monotonic())
            if probe.answer:
                del self._probes[what]
                self._do(self._life.answered(time.monotonic(), time.time(), what, probe.answer._replace(figures=figures.values)))

    def _do(self, actions: Iterable[Action]) -> None:
        for action in actions:
            match action:
                case LogLine():
                    self._say(action)
                case NotifySystemd():
                    notify(**action.fields)
                case SendSignal():
                    if self._server:
                        self._server.send(action.number)
                case AskServer():
                    self._ask(action.what)
                case Quit():
                    self._exit_code = action.code
                case Instruction():
                    {
                        Instruction.MEET: self._open_link,
                        Instruction.GO: self._say_go,
                        Instruction.START: self._start,
                        Instruction.LOOK: self._look,
                        Instruction.DUMP: self._dump,
                        Instruction.KILL: self._kill,
                    }[action]()

    def _open_link(self) -> None:
        now, files = time.monotonic(), files_digest(Path(self._launch.checkpoint))
        agreed = {"vllm-safe": __version__, **(self._launch.agreed or {}), "the model's files": files}
        self._nodes = NodeLink(self._launch, NodeGroup(self._launch, agreed, now), now)

    def _say_go(self) -> None:
        if self._nodes:
            self._nodes.go()

    def _meet(self) -> None:
        """Exchange messages with the other machines of the model."""
        if not (nodes := self._nodes):
            return
        now, life = time.monotonic(), self._life
        nodes.advance(now)
        if self._held and now >= self._held.until:
            nodes.group.blame(self._held.text)
        self._do(life.met(now, time.time(), nodes.group))
        drains = life.phase == "stopping" and life.cause in {"stopped", "room"} and nodes.group.is_first
        if life.phase in {"stopping", "ended"} and not drains:  # the requests that still run need the other machines
            self._say_farewell()
        else:
            nodes.report(now, Alive(life.phase, life.loading.still if life.loading else 0.0, life.text))
        self._let_go()

    def _let_go(self) -> None:
        """Report the end of the server that was held back, once another machine has reported the cause, or after the wait for that."""
        if self._held and self._life.phase in {"stopping", "ended"}:
            self._end(self._held.status)

    def _say_farewell(self) -> None:
        """Tell the other machines of the model why this one ends. A reason that came from another machine is passed on as it is."""
        if self._nodes:
            life, me = self._life, self._nodes.group.me
            ended = {"node": life.reason, "network": life.reason, "stopped": f"{me} was stopped"}
            why = life.text if life.cause == "exited" else life.reason
            self._nodes.end(Farewell(ended.get(life.cause, f"{me} ended: {why}"), never=self._exit_code == EXIT_MISUSE))

    def _start(self) -> None:
        env = (self._nodes.environment() if self._nodes else {}) | self._env
        try:
            self._server = Server(self._launch, env)
        except OSError as error:  # EAGAIN at limits.tasks_max, ENOMEM at the memory limit
            self._do(self._life.not_started(time.time(), error.strerror or str(error)))
        else:
            self._output.read_from(self._server.output)

    def _look(self) -> None:
        if self._life.loading:
            self._cards = state_file.read_card_usage(self._launch.name, self._cards)
        self._do(self._life.looked(time.monotonic(), time.time(), self._processes(), self._cards))
        if self._launch.port and self._life.idle:
            self._do(self._life.connected(time.monotonic(), time.time(), count_connections(self._launch.port)))

    def _ask(self, what: str) -> None:
        now, figures = time.monotonic(), MetricsReader()
        url = {"token": self._launch.completions, "metrics": self._launch.metrics}.get(what, self._launch.health)
        found = self._resolver.look_up(url)
        if what == "token":
            names = (self._launch.serve_args or {}).get("served-model-name") or [self._launch.name]
            question = json.dumps({"model": names if isinstance(names, str) else names[0], "prompt": "1", "max_tokens": 1})
            # The lifecycle judges a missing answer, since it knows how much of the time counts.
            patience = 2 * self._launch.hang_timeout
            probe = Probe(url, found, now, timeout=patience, json=question, key=self._env.get("VLLM_API_KEY", ""))
        elif what == "metrics":
            probe = Probe(url, found, now, timeout=PATIENCE, take=figures.feed)
        else:
            probe = Probe(url, found, now, timeout=PATIENCE if self._life.alive else TIMEOUT)
        self._probes[what] = (probe, figures)

    def _read_output(self, chunk: bytes) -> None:
        now = time.monotonic()
        if now >= self._searched_until:
            self._searched, self._searched_until = 0, now + 1
        if self._searched < HEARD:
            self._life.printed(chunk, now, time.time())
        if self._searched < SIFTED:
            self._searched += len(chunk)
            self._trouble.read_output(chunk, now, serves=self._life.served)

    def _processes(self) -> tuple[Process, ...]:
        return read_processes(self._unit, os.getpid())

    def _dump(self) -> None:
        processes = self._processes()
        for line in hang_evidence.describe_process_states(processes):
            self._say(LogLine(line, level=4))
        if (self._launch.env or {}).get("PYTHONFAULTHANDLER") == "1":
            hang_evidence.signal_all(processes, signal.SIGABRT, signal.SIGCONT)

    def _kill(self) -> None:
        for _ in range(SWEEPS):
            alive = [process for process in self._processes() if process.state not in "ZX"]
            if not alive:
                return
            hang_evidence.signal_all(alive, signal.SIGKILL)
            time.sleep(0.01)

    def _say(self, line: LogLine) -> None:
        self._output.say(f"vllm-safe: {printable(line.text)}", prefix=journal_level(line.level))

    def _write_state(self, *, last: bool = False) -> None:
        now, life = time.monotonic(), self._life
        if not last and life.phase == self._written.phase and now < self._written_at + WRITE_EVERY:
            return  # a new phase is written at once: the loop may not wake up again for long
        alive, loading = life.alive, life.loading
        new = state_file.State(
            name=self._launch.name,
            run=os.environ.get("INVOCATION_ID", ""),
            pid=os.getpid(),
            time=self._written.time,
            started=self._started,
            phase=life.phase,
            since=life.since,
            text=life.text,
            progress=loading.progress if loading else None,
            memory=life.memory,
            running=alive.running if alive else None,
            waiting=alive.waiting if alive else None,
            tokens=alive.tokens if alive else None,
            cause=life.cause,
            reason=life.reason,
            log=tuple(self._output.lines(state_file.KEPT_LINES)),
            error=life.error,
            served=life.served,
            used=life.idle.used if life.idle else None,
            idle_timeout=self._launch.idle_timeout if life.idle else 0.0,
            nodes=self._nodes.group.phases if self._nodes else "",
        )
        if last or new != self._written or now >= self._written_at + WRITE_STEADY:
            self._written, self._written_at = new._replace(time=time.time()), now
            state_file.write_state(self._written)


def _end_before(launch: Launch) -> tuple[str, str]:
    """Return the cause of the previous end, and its error if that start never served; "" where this is no automatic restart."""
    if not launch.restart:
        return "", ""
    with suppress(OSError, ValueError, AttributeError):
        before = json.loads(state_file.state_file(launch.name).read_text(encoding="utf-8"))
        cause = str(before.get("cause", ""))
        return cause, str(before.get("error", "")) if cause == "exited" and before.get("served") is False else ""
    return "", ""


def journal_level(level: int) -> str:
    """Return the prefix that sets the level of a line in the journal (SyslogLevelPrefix=); "" on a terminal."""
    return f"<{level}>" if "JOURNAL_STREAM" in os.environ else ""


def _unit() -> Path | None:
    """Return the cgroup of the unit; None if this process runs in another cgroup, whose processes must not be killed."""
    folder = own_cgroup()
    return folder if folder and folder.name.startswith("vllm@") else None


def _watchdog() -> float:
    """Return the seconds within which systemd expects a watchdog notification, or 0."""
    mine = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    return int(os.environ.get("WATCHDOG_USEC") or 0) / 1e6 if mine else 0.0


def _time_of_day(moment: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(moment))
