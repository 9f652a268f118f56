"""The state of the server, and the ways from one phase to the next. Pure: the time is a parameter.

waiting -> starting ... warming-up -> ready -> stopping -> ended, as in contract/state_file.py. launch/lifecycle.py decides at each event
which way is taken.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vllm_safe.common.errors import EXIT_FAILED, EXIT_MISUSE
from vllm_safe.common.sizes import format_span
from vllm_safe.contract.launch_file import Launch
from vllm_safe.contract.state_file import ReportedMemory
from vllm_safe.launch.actions import Action, Instruction, LogLine, NotifySystemd, Quit, extend_timeout
from vllm_safe.launch.first_token import FirstToken
from vllm_safe.launch.http_probe import Answer
from vllm_safe.launch.idleness import Idleness
from vllm_safe.launch.liveness import Liveness
from vllm_safe.launch.loading import Loading
from vllm_safe.launch.server_end import Ending
from vllm_safe.launch.timers import TimeOfDay, Timers

if TYPE_CHECKING:  # a model on one machine does not load it
    from vllm_safe.launch.node_messages import Farewell

POLL_FIRST, POLL_LONGEST = 0.1, 2.0  # seconds between two requests to the health URL while loading, doubling
LOOK_EVERY = 1.0  # seconds between two readings of the processes while loading
STATUS_EVERY = 5.0  # seconds between two updates of STATUS= while loading
NODE_GRACE = 5.0  # seconds after SIGTERM for a server whose other machines are gone: it may wait for them for ever
# Interval and length in seconds of the extensions of systemd's start timeout. They are long, since the guard may freeze this process and
# swapping may slow it down: this process itself ends a server that makes no progress, and the timeout is only for this process.
# TimeoutStartSec= in vllm@.service is the first of these spans.
EXTEND_EVERY, EXTEND_BY = 30.0, 600.0


class ServerState:
    """The state of one server.

    now: seconds of a monotonic clock. wall: Unix time. watchdog: seconds of WatchdogSec=, 0 for none. sizes: see Loading.
    before: the error that ended the previous start, if this is an automatic restart and the previous start never served; else "".
    """

    def __init__(  # noqa: PLR0913 - each parameter is a fact from another source
        self,
        launch: Launch,
        now: float,
        wall: float,
        time_of_day: TimeOfDay,
        *,
        sizes: Sequence[int] = (),
        watchdog: float = 0.0,
        before: str = "",
    ) -> None:
        self.phase = "waiting" if launch.pause or launch.nodes else "starting"
        self.since = wall  # the beginning of the phase
        self.text = ""  # the last STATUS=
        self.cause = ""
        self.reason = ""
        self.error = ""  # the error that ended the server, as the server printed it
        self.served = False
        self.alive: Liveness | None = None
        self.idle: Idleness | None = None  # while it serves, if a request started it
        self._launch, self._sizes, self._before, self._time_of_day = launch, sizes, before, time_of_day
        self._started = now  # the start of the server, or of the wait for it
        self._loading = Loading(now, wall, sizes)
        self._last_health = Answer("was not asked yet")
        self._interval = POLL_FIRST
        self._first = FirstToken()
        self._others_still, self._others = math.inf, ""  # the time without progress and the phases of the model's other machines
        self._ending: Ending | None = None
        self._exited = False
        self._code = 0  # the exit code, once the end has begun
        self._feed = watchdog / 4
        self._timers = Timers({"extend": now, **({"watchdog": now} if watchdog else {})})
        self._timers |= {"go": now + launch.pause} if self.phase == "waiting" else self._loading_timers(now)

    @property
    def due(self) -> float | None:
        """The time of the next necessary call of `tick`; None if there is none."""
        if self.phase == "ended":
            return None
        return min(self._timers.due, self._ending.due if self._ending else math.inf)

    @property
    def memory(self) -> ReportedMemory | None:
        """The figures that the server reported about the memory of its GPUs while it started."""
        return self._loading.follow.memory

    @property
    def loading(self) -> Loading | None:
        """The progress of the start, while it is under way."""
        return None if self.alive or self._ending else self._loading

    def _ready(self, now: float, wall: float) -> list[Action]:
        took, self._started = format_span(now - self._started), now
        self._go("ready", wall)
        self.served = True
        self.alive = Liveness(self._launch, now)
        self.idle = Idleness(self._launch, now, wall) if self._launch.request else None
        questions = [what for what, url in (("health", self._launch.health), ("metrics", self._launch.metrics)) if url]
        self._timers = Timers(dict.fromkeys(("look", *questions), now + self.alive.interval))
        self._timers |= {"watchdog": now} if self._feed else {}
        first = f"with {self._launch.nodes[0]}, which answers" if self._launch.rank else f"on {self._launch.url}"
        ready = f"serving {self._launch.name} {first}"
        status = self._set_status(f"ready, {ready}")
        return [NotifySystemd({"READY": "1", **status.fields}), LogLine(f"ready after {took}: {ready}")]

    def _begin(self, now: float, wall: float) -> list[Action]:
        self._go("starting", wall)
        self._started, self._loading = now, Loading(now, wall, self._sizes)
        self._timers |= self._loading_timers(now)
        return [Instruction.START]

    def _end_with_node(self, now: float, wall: float, farewell: Farewell) -> list[Action]:
        """End because of another machine: the rest of the server, on this one, cannot answer any request."""
        self.cause, self.reason = "network" if farewell.elsewhere else "node", farewell.text
        code = EXIT_MISUSE if farewell.never else EXIT_FAILED
        if self.phase == "waiting":
            self._code = code
            return [LogLine(self.reason, level=3), self._set_status(self.reason), *self._quit(wall)]
        grace = min(self._launch.stop_grace, NODE_GRACE)
        return [LogLine(self.reason, level=3), *self._begin_end(now, wall, code=code, hung=False, grace=grace)]

    def _end_hung(self, now: float, wall: float, cause: str, reason: str) -> list[Action]:
        self.cause, self.reason = cause, reason
        return [LogLine(reason, level=3), *self._begin_end(now, wall, code=EXIT_FAILED, hung=True)]

    def _begin_end(self, now: float, wall: float, *, code: int, hung: bool, grace: float | None = None) -> list[Action]:
        self._ending = Ending(now, self._launch.stop_grace if grace is None else grace, loading=self.alive is None, hung=hung)
        self._go("stopping", wall)
        self._code = code
        self._timers = Timers({"watchdog": now} if self._feed else {})
        status = self._set_status(self.reason)
        until_killed = extend_timeout(self._ending.longest + 10)  # 10 s more, for a machine under pressure
        return [NotifySystemd({"STOPPING": "1", **until_killed, **status.fields}), self._ending.begin()]

    def _end_on(self, now: float, ending: Ending) -> list[Action]:
        actions = ending.tick(now)
        if actions is None:
            return [LogLine("the server survived SIGKILL: it hangs in the kernel or a driver", level=3), *self._quit(None)]
        # The server has exited while other processes still print their stacks: they have until the kill is due.
        return [*actions, *self._quit(None)] if self._exited and Instruction.KILL in actions else actions

    def _quit(self, wall: float | None) -> list[Action]:
        self._go("ended", self.since if wall is None else wall)
        return [Instruction.KILL, Quit(self._code)]

    def _go(self, phase: str, wall: float) -> None:
        if phase != self.phase:
            self.phase, self.since = phase, wall

    def _set_status(self, text: str) -> NotifySystemd:
        self.text = text
        return NotifySystemd({"STATUS": text})

    def _loading_timers(self, now: float) -> dict[str, float]:
        timeout = now + self._launch.start_timeout
        asked = {"health": now + POLL_FIRST} if self._launch.health else {}
        return {"look": now, **asked, "status": now + STATUS_EVERY, "start_timeout": timeout}
