"""The decisions of the main process about its server. Pure: the time is a parameter, so that each case can be tested.

Each event returns the actions to carry out, in order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vllm_safe.common.errors import EXIT_FAILED, EXIT_IDLE, EXIT_MISUSE
from vllm_safe.common.sizes import format_span
from vllm_safe.contract.room_note import ROOM_FOR
from vllm_safe.contract.state_file import NO_CARDS, CardUsage
from vllm_safe.launch.actions import Action, AskServer, Instruction, LogLine, NotifySystemd, Quit, extend_timeout
from vllm_safe.launch.http_probe import Answer
from vllm_safe.launch.liveness import Liveness
from vllm_safe.launch.processes import Process
from vllm_safe.launch.server_end import Ended, explain_end
from vllm_safe.launch.server_process import describe_ending
from vllm_safe.launch.server_state import EXTEND_BY, EXTEND_EVERY, LOOK_EVERY, POLL_LONGEST, STATUS_EVERY, ServerState

if TYPE_CHECKING:  # a model on one machine does not load it
    from vllm_safe.launch.node_group import NodeGroup


class Lifecycle(ServerState):
    """The state of one server, and what follows from each event."""

    def tick(self, now: float, wall: float) -> list[Action]:
        """Handle the passing of time."""
        if self.phase == "ended":
            return []
        actions: list[Action] = [NotifySystemd({"WATCHDOG": "1"})] if self._timers.fires("watchdog", now, self._feed) else []
        if self._ending:
            return actions + self._end_on(now, self._ending)
        if self._timers.fires("extend", now, EXTEND_EVERY):
            actions.append(NotifySystemd(extend_timeout(EXTEND_BY)))
        if self.phase == "waiting":
            return actions + self._wait_on(now, wall)
        if self._timers.fires("look", now, self.alive.interval if self.alive else LOOK_EVERY):
            actions.append(Instruction.LOOK)
        actions += [
            AskServer(what) for what in ("health", "metrics") if self._timers.fires(what, now, math.inf)
        ]  # the next one is set when the answer arrives
        return actions + (self._serve_on(now, wall, self.alive) if self.alive else self._load_on(now, wall))

    def printed(self, chunk: bytes, now: float, wall: float) -> None:
        """Handle output of the server."""
        if (loading := self.loading) and loading.read_output(chunk, now) and self._launch.metrics and self.phase != "waiting":
            self._go(loading.follow.phase, wall)

    def looked(self, now: float, wall: float, processes: Sequence[Process], cards: CardUsage = NO_CARDS) -> list[Action]:
        """Handle a reading of the server's processes, and the GPU usage that the recorder reports."""
        if self._ending or self.phase == "ended":
            return []
        if self.alive:
            self.alive.looked(processes)
            return []
        self._loading.look(now, wall, processes, cards)
        self._first.pass_time(now)
        if wrong := self._first.overdue(self._launch.hang_timeout):
            return self._end_hung(now, wall, "hang", wrong)
        if min(self._loading.still, self._others_still) >= self._launch.stall_timeout:
            return self._end_hung(now, wall, "stall", self._loading.stall(self.phase, self._time_of_day))
        return []

    def answered(self, now: float, wall: float, what: str, answer: Answer) -> list[Action]:
        """Handle the answer to a request, or its failure."""
        if self._ending or self.phase == "ended":
            return []
        if what == "token":
            return self._answered_token(now, wall, answer)
        if self.alive:
            return self._answered_alive(now, wall, what, answer, self.alive)
        self._last_health = answer
        self._timers["health"] = now + self._interval
        self._interval = min(2 * self._interval, POLL_LONGEST)
        if not answer.healthy or self._first.asked:
            return []
        if not self._launch.completions:
            return self._ready(now, wall)
        self._loading.follow.go("warming-up", now)
        self._go("warming-up", wall)
        self._first.ask(now)
        return [AskServer("token")]

    def connected(self, now: float, wall: float, count: int) -> list[Action]:
        """Handle the number of connections of a server without counters."""
        if self._ending or self.phase == "ended" or not self.idle:
            return []
        self.idle.connected(now, wall, count)
        return self._end_if_idle(now, wall)

    def met(self, now: float, wall: float, nodes: NodeGroup) -> list[Action]:
        """Handle the present state of the other machines of the model."""
        if self._ending or self.phase == "ended":
            return []
        if nodes.verdict:
            return self._end_with_node(now, wall, nodes.verdict)
        self._others_still, self._others = nodes.still, nodes.progress
        if self.phase == "waiting":
            if nodes.complete or nodes.started:
                return [Instruction.GO, *self._begin(now, wall)] if nodes.complete else self._begin(now, wall)
            status = nodes.waiting_for
            return [] if status == self.text else [LogLine(status), self._set_status(status)]
        if nodes.first_serves and not self.alive:
            return self._ready(now, wall)
        return []

    def asked_to_stop(self, now: float, wall: float, room_for: str = "") -> list[Action]:
        """Handle SIGTERM from systemd, or SIGINT. room_for: the model that needs the room of this one, if that is the reason."""
        if self._ending or self.phase == "ended":
            self._code = 0
            return []
        if self.phase == "waiting":
            self._go("ended", wall)
            whom = "the automatic restart" if "go" in self._timers else "the other machines"
            self.cause, self.reason = "stopped", f"stopped while waiting for {whom}"
            return [LogLine(self.reason), Quit(0)]
        why = f"running requests have {format_span(self._launch.stop_grace)}" if self.alive else "the server was still loading"
        self.cause = "room" if room_for else "stopped"
        self.reason = f"{ROOM_FOR}{room_for}: {why}" if room_for else f"stopping: {why}"
        return [LogLine(self.reason), *self._begin_end(now, wall, code=0, hung=False)]

    def exited(self, now: float, wall: float, status: int, head: Sequence[str], tail: Sequence[str]) -> list[Action]:
        """Handle the end of the server. status: its wait status. head: its first lines of trouble. tail: the last lines that it printed."""
        ending = f"({describe_ending(status)})"
        if self._ending:
            self._exited = True
            if self._ending.hung and now < self._ending.due:
                return []  # other processes are still printing their stacks
            return [LogLine(f"the server has ended {ending}"), *self._quit(wall)]
        explanation = explain_end(self._launch, Ended(status, head, tail, self.served, self._before))
        after = format_span(now - self._started)
        what = f"after serving for {after}" if self.served else f"after {after}, before it was ready"
        repeated = explanation.again and not explanation.never and not self.served
        twice = "; the same error as at the previous start: it is not started again" if repeated else ""
        self.cause, self.error = "exited", explanation.error
        self.reason = f"the server ended {what} {ending}{twice}"
        self._code = EXIT_MISUSE if (explanation.never or explanation.again) and not self.served else EXIT_FAILED
        return [
            LogLine(self.reason),
            LogLine(explanation.sentence, level=3),
            self._set_status(explanation.sentence),
            *self._quit(wall),
        ]

    def not_started(self, wall: float, why: str) -> list[Action]:
        """Handle a failed start: the kernel refused the server a process or memory. why: the error of the kernel."""
        self.cause, self.reason = "no-start", f"the server could not be started: {why}"
        self._code = EXIT_FAILED
        return [LogLine(self.reason, level=3), self._set_status(self.reason), *self._quit(wall)]

    def _wait_on(self, now: float, wall: float) -> list[Action]:
        if self._timers.fires("go", now, math.inf):
            del self._timers["go"]
            return [Instruction.MEET] if self._launch.nodes else self._begin(now, wall)
        if self.text or "go" not in self._timers:
            return []
        pause = format_span(self._launch.pause)
        status = f"automatic restart {self._launch.restart}: waiting {pause}; systemctl restart skips the wait"
        return [LogLine(status), self._set_status(status)]

    def _load_on(self, now: float, wall: float) -> list[Action]:
        if now >= self._timers["start_timeout"]:
            allowed = format_span(self._launch.start_timeout)
            self.cause = "start-timeout"
            vain = self._loading.in_vain
            self.reason = (
                f"not ready within {allowed} (start_timeout): {self._launch.health} {self._last_health.text}{'; ' if vain else ''}{vain}"
            )
            return [LogLine(self.reason, level=3), *self._begin_end(now, wall, code=EXIT_FAILED, hung=bool(vain))]
        if not self._timers.fires("status", now, STATUS_EVERY):
            return []
        # A loading server refuses connections, since vLLM listens only when it is ready. Any other answer is shown.
        health = self._last_health
        usual = health.healthy or health.text in {"refuses connections", "was not asked yet"}
        more = self._others if usual else f"; {self._launch.health} {health.text}{self._others}"
        return [self._set_status(self._loading.status(now, self.phase, more))]

    def _serve_on(self, now: float, wall: float, alive: Liveness) -> list[Action]:
        alive.pass_time(now, wall)
        if wrong := alive.verdict(self._time_of_day):
            return self._end_hung(now, wall, "hang", wrong)
        if alive.wants_token:
            alive.asked_for_token()
            if self.idle:
                self.idle.asked()
            return [AskServer("token")]
        return []

    def _answered_alive(self, now: float, wall: float, what: str, answer: Answer, alive: Liveness) -> list[Action]:
        self._timers[what] = now + alive.interval
        if what == "health":
            alive.health(answer)
            return []
        alive.counted(answer.figures)
        if self.idle:
            self.idle.counted(now, wall, answer.figures)
        return self._end_if_idle(now, wall)

    def _end_if_idle(self, now: float, wall: float) -> list[Action]:
        """End the server as a stop does, if there was no request for `idle_timeout`. A request that has just arrived is still answered."""
        if not self.idle or not self.idle.is_over:
            return []
        self.cause = "idle"
        self.reason = f"stopped: no request for {format_span(self._launch.idle_timeout)} (idle_timeout)"
        return [LogLine(self.reason), *self._begin_end(now, wall, code=EXIT_IDLE, hung=False)]

    def _answered_token(self, now: float, wall: float, answer: Answer) -> list[Action]:
        if self.alive:
            self.alive.got_token(answer)
            if self.idle:
                self.idle.answered()
            return []
        ready, lines = self._first.answered(answer)
        return [*lines, *self._ready(now, wall)] if ready else lines
