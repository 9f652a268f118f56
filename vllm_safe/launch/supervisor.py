"""The loop of the main process: one thread that waits for all its events at once, and never blocks on a single one."""

from __future__ import annotations

import json
import os
import select
import signal
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from vllm_safe.causes.first_trouble import FirstTrouble
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
from vllm_safe.launch.own_unit import journal_level, own_unit, previous_end, watchdog_seconds
from vllm_safe.launch.processes import Process, checkpoint_sizes, read_processes
from vllm_safe.launch.resolver import Resolver
from vllm_safe.launch.server_output import Output
from vllm_safe.launch.server_process import Server, record_engine_files

if TYPE_CHECKING:  # see _load_node_supervisor
    from vllm_safe.launch.node_supervisor import NodeSupervisor

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


class _Supervisor:
    def __init__(self, launch: Launch, env: dict[str, str]) -> None:
        self._signals = open_signal_pipe((signal.SIGTERM, signal.SIGINT, signal.SIGCHLD))
        cause, before = previous_end(launch)
        # After an end that another machine caused, that machine pauses, and this one waits for it.
        self._launch, self._env = launch._replace(pause=0.0) if cause in {"node", "network"} else launch, env
        self._server: Server | None = None
        self._output = Output(_STDOUT, self._read_output)
        self._unit = own_unit()
        sizes = checkpoint_sizes(Path(launch.checkpoint)) if launch.checkpoint else ()
        self._life = Lifecycle(
            self._launch, time.monotonic(), time.time(), _time_of_day, sizes=sizes, watchdog=watchdog_seconds(), before=before
        )
        self._trouble = FirstTrouble()
        self._started = time.time()
        self._resolver = Resolver()
        self._node_supervisor = _load_node_supervisor() if launch.nodes else None
        self._nodes: NodeSupervisor | None = None
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
        if self._nodes:
            self._nodes.say_farewell(self._exit_code)
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
            if self._nodes and self._nodes.hold_end(status, self._trouble.lines(), self._output.lines()):
                self._server = None
                self._kill()
            else:
                self._end(status)

    def _end(self, status: int) -> None:
        self._do(self._life.exited(time.monotonic(), time.time(), status, self._trouble.lines(), self._output.lines()))

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
        if self._node_supervisor:
            self._nodes = self._node_supervisor(self._launch, self._life)

    def _say_go(self) -> None:
        if self._nodes:
            self._nodes.go()

    def _meet(self) -> None:
        """Exchange messages with the other machines of the model."""
        if not (nodes := self._nodes):
            return
        self._do(nodes.meet())
        nodes.report(self._exit_code)
        if (status := nodes.release_end()) is not None:
            self._end(status)

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
            nodes=self._nodes.phases if self._nodes else "",
        )
        if last or new != self._written or now >= self._written_at + WRITE_STEADY:
            self._written, self._written_at = new._replace(time=time.time()), now
            state_file.write_state(self._written)


def _load_node_supervisor() -> type[NodeSupervisor]:
    """Import the part for several machines, at the start: an upgrade may replace the package while the server waits for its restart."""
    from vllm_safe.launch.node_supervisor import NodeSupervisor  # noqa: PLC0415 - 0.2 MB that a model on one machine does without

    return NodeSupervisor


def _time_of_day(moment: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(moment))
