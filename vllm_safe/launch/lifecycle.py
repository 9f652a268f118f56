"""What the main process does when something happens to its server: pure, with the time handed in, so that each case is a test.

loading -> serving -> ended, and ending from anywhere. Each event returns the actions to carry out, in order.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from vllm_safe.errors import EXIT_FAILED, EXIT_MISUSE
from vllm_safe.launch.plan import Launch
from vllm_safe.launch.probe import Answer
from vllm_safe.launch.server import CANNOT_RUN, describe_ending
from vllm_safe.sizes import format_span

STATUS_EVERY = 5.0  # seconds between two "loading, 3 min 20 s"
TERM_AGAIN = 2.0  # vLLM swallows the first SIGTERM while it loads (vllm/utils/network_utils.py); the second ends it
LOADING_GRACE = 20.0  # nothing is being answered yet; vLLM needs 9 s after the second SIGTERM
DYING = 2.0  # after SIGKILL; what does not die by then hangs in a driver, and systemd goes on trying

# Before it ever served: a wrong option (argparse, and most others), or no such program. Tried again, it would say the same.
_NEVER_CAN_WORK = (2, 126, CANNOT_RUN)


class Phase(Enum):
    """Where the server is in its life."""

    LOADING = "loading"
    SERVING = "serving"
    ENDING = "ending"
    ENDED = "ended"


@dataclass(frozen=True)
class Say:
    """A line for the journal, at a level of syslog(3)."""

    text: str
    level: int = 6

    @classmethod
    def error(cls, text: str) -> Say:
        """A line that `journalctl -p err` shows."""
        return cls(text, level=3)


@dataclass(frozen=True)
class Tell:
    """Fields of sd_notify(3)."""

    fields: Mapping[str, str]


@dataclass(frozen=True)
class Send:
    """A signal for the server."""

    number: signal.Signals


@dataclass(frozen=True)
class Kill:
    """SIGKILL for the server and what it started."""


@dataclass(frozen=True)
class Quit:
    """The end of the main process; systemd kills what is left in the cgroup."""

    code: int


Action = Say | Tell | Send | Kill | Quit


@dataclass
class Lifecycle:
    """The state of one server. Times are seconds of one monotonic clock."""

    launch: Launch
    started: float
    phase: Phase = field(default=Phase.LOADING, init=False)

    def __post_init__(self) -> None:
        self._status_at = self.started + STATUS_EVERY
        self._serving_since = 0.0
        self._heard = "was not asked yet"  # what the health URL last did
        self._code = 0  # to quit with, once ending
        self._term_at: float | None = None
        self._kill_at = 0.0
        self._killed = False

    @property
    def due(self) -> float | None:
        """When `tick` must be called next, if at all."""
        if self.phase is Phase.LOADING:
            return min(self._status_at, self.started + self.launch.start_timeout)
        if self.phase is Phase.ENDING:
            return self._kill_at if self._term_at is None else min(self._term_at, self._kill_at)
        return None

    def tick(self, now: float) -> list[Action]:
        """Time has passed."""
        if self.phase is Phase.LOADING:
            return self._wait_on(now)
        if self.phase is Phase.ENDING:
            return self._end_on(now)
        return []

    def answered(self, now: float, answer: Answer) -> list[Action]:
        """The health URL was asked."""
        self._heard = answer.text
        if self.phase is not Phase.LOADING or not answer.healthy:
            return []
        self.phase = Phase.SERVING
        self._serving_since = now
        ready = f"serving {self.launch.name} on {_base(self.launch.health)}"
        return [Tell({"READY": "1", "STATUS": f"ready, {ready}"}), Say(f"ready after {format_span(now - self.started)}: {ready}")]

    def asked_to_stop(self, now: float) -> list[Action]:
        """SIGTERM from systemd, or ^C."""
        if self.phase is Phase.ENDING:
            self._code = 0
            return []
        why = "it was still loading" if self.phase is Phase.LOADING else f"running requests have {format_span(self.launch.stop_grace)}"
        return [Say(f"stopping: {why}"), *self._begin_end(now, code=0, status=f"stopping: {why}")]

    def exited(self, now: float, status: int, last_words: str) -> list[Action]:
        """The server has ended with this wait status; `last_words` is what it said about it, or ""."""
        phase, self.phase = self.phase, Phase.ENDED
        ending = describe_ending(status)
        if phase is Phase.ENDING:
            return [Say(f"the server has ended ({ending})"), Quit(self._code)]
        if phase is Phase.LOADING:
            what = f"the server ended after {format_span(now - self.started)}, before it was ready"
        else:
            what = f"the server ended by itself after serving for {format_span(now - self._serving_since)}"
        reason = f"{what} ({ending})" + (f": {last_words}" if last_words else "")
        never = phase is Phase.LOADING and os.waitstatus_to_exitcode(status) in _NEVER_CAN_WORK
        return [Say.error(reason), Tell({"STATUS": reason}), Quit(EXIT_MISUSE if never else EXIT_FAILED)]

    def _wait_on(self, now: float) -> list[Action]:
        if now >= self.started + self.launch.start_timeout:
            allowed = format_span(self.launch.start_timeout)
            reason = f"not ready within {allowed} (start_timeout): {self.launch.health} {self._heard}"
            return [Say.error(reason), *self._begin_end(now, code=EXIT_FAILED, status=reason)]
        if now < self._status_at:
            return []
        self._status_at = now + STATUS_EVERY
        # Refusing connections is what a loading server does: vLLM listens when it is ready. Anything else is worth knowing.
        heard = "" if self._heard == "refuses connections" else f"; {self.launch.health} {self._heard}"
        return [Tell({"STATUS": f"loading, {format_span(now - self.started)}{heard}"})]

    def _begin_end(self, now: float, *, code: int, status: str) -> list[Action]:
        loading, self.phase = self.phase is Phase.LOADING, Phase.ENDING
        grace = min(self.launch.stop_grace, LOADING_GRACE) if loading else self.launch.stop_grace
        self._code = code
        self._term_at = now + TERM_AGAIN if loading else None
        self._kill_at = now + grace
        until_killed = int((grace + DYING + 10) * 1_000_000)  # 10 s more, for a machine that is short of everything
        return [
            Tell({"STOPPING": "1", "STATUS": status, "EXTEND_TIMEOUT_USEC": str(until_killed)}),
            Send(signal.SIGTERM),
        ]

    def _end_on(self, now: float) -> list[Action]:
        if now >= self._kill_at:
            return self._kill_on(now)
        if self._term_at is not None and now >= self._term_at:
            self._term_at = None
            return [Send(signal.SIGTERM)]
        return []

    def _kill_on(self, now: float) -> list[Action]:
        if self._killed:
            self.phase = Phase.ENDED
            return [Say.error("the server does not die of SIGKILL: it hangs in the kernel or a driver"), Quit(self._code)]
        self._killed, self._term_at, self._kill_at = True, None, now + DYING
        return [Say("the server has not ended in time: killing it"), Kill()]


def _base(url: str) -> str:
    """The URL of the server from that of its health: "http://127.0.0.1:8000"."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.partition('/')[0]}"
