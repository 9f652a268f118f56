"""The loop of the main process: one thread that waits for everything at once and never for one thing alone."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Iterable

from vllm_safe.launch.lifecycle import Action, Kill, Lifecycle, Phase, Quit, Say, Send, Tell
from vllm_safe.launch.output import Output
from vllm_safe.launch.plan import Launch
from vllm_safe.launch.probe import Probe
from vllm_safe.launch.server import Server
from vllm_safe.notify import notify

POLL_FIRST, POLL_LONGEST = 0.1, 2.0  # seconds between two questions to the health URL, doubling
DRAIN = 2.0  # seconds to pass on what an ended server left in its pipe

_STDOUT = 1


def supervise(launch: Launch, env: dict[str, str]) -> int:
    """Run the server of `launch` with this environment until it ends or systemd stops it. The exit code of the main process."""
    return _Supervisor(launch, env).run()


class _Supervisor:
    def __init__(self, launch: Launch, env: dict[str, str]) -> None:
        self._signals = _catch_signals()
        self._launch = launch
        self._server = Server(launch.argv, env, launch.oom_score_adj)
        self._output = Output(self._server.output, _STDOUT)
        now = time.monotonic()
        self._life = Lifecycle(launch, now)
        self._probe: Probe | None = None
        self._probe_at, self._interval = now + POLL_FIRST, POLL_FIRST
        self._exit_code: int | None = None

    def run(self) -> int:
        for line in self._launch.summary:
            self._say(Say(line))
        notify(STATUS="loading")
        while self._exit_code is None:
            self._wait()
            now = time.monotonic()
            self._output.advance()
            self._take_signals(now)
            self._ask_health(now)
            self._do(self._life.tick(now))
        self._output.finish(DRAIN)
        return self._exit_code

    def _wait(self) -> None:
        """Until something can be done."""
        probe = self._probe
        reading = [self._signals, *self._output.reading, *(probe.reading if probe else ())]
        writing = [*self._output.writing, *(probe.writing if probe else ())]
        times = [self._life.due, probe.deadline if probe else self._probe_at if self._life.phase is Phase.LOADING else None]
        due = min((at for at in times if at is not None), default=None)
        select.select(reading, writing, (), None if due is None else max(0.0, due - time.monotonic()))

    def _take_signals(self, now: float) -> None:
        try:
            numbers = os.read(self._signals, 512)
        except BlockingIOError:
            return
        if signal.SIGTERM in numbers or signal.SIGINT in numbers:
            self._do(self._life.asked_to_stop(now))
        if signal.SIGCHLD in numbers and (status := self._server.reap()) is not None:
            self._output.finish(DRAIN)
            self._do(self._life.exited(now, status, self._output.last_words()))

    def _ask_health(self, now: float) -> None:
        if self._life.phase is not Phase.LOADING:
            if self._probe:
                self._probe.close()
                self._probe = None
            return
        if self._probe is None:
            if now < self._probe_at:
                return
            self._probe = Probe(self._launch.health, now)
        self._probe.advance(now)
        if self._probe.answer:
            self._do(self._life.answered(now, self._probe.answer))
            self._probe = None
            self._probe_at, self._interval = now + self._interval, min(2 * self._interval, POLL_LONGEST)

    def _do(self, actions: Iterable[Action]) -> None:
        for action in actions:
            match action:
                case Say():
                    self._say(action)
                case Tell(fields):
                    notify(**fields)
                case Send(number):
                    self._server.send(number)
                case Kill():
                    self._server.kill()
                case Quit(code):
                    self._exit_code = code

    def _say(self, line: Say) -> None:
        self._output.say(f"vllm-safe: {line.text}", prefix=journal_level(line.level))


def journal_level(level: int) -> str:
    """The prefix that gives a line its level in the journal (SyslogLevelPrefix=); nothing on a terminal."""
    return f"<{level}>" if "JOURNAL_STREAM" in os.environ else ""


def _catch_signals() -> int:
    """A descriptor from which the numbers of the signals that came can be read: none is lost between looking and waiting."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    return reading
