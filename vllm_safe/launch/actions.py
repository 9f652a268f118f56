"""What the pure core of the main process asks its loop to do, in order."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from enum import Enum
from typing import NamedTuple


class LogLine(NamedTuple):
    """A line for the journal, at a level of syslog(3): 3 is what `journalctl -p err` shows."""

    text: str
    level: int = 6


class NotifySystemd(NamedTuple):
    """Fields of sd_notify(3)."""

    fields: Mapping[str, str]


class SendSignal(NamedTuple):
    """A signal for the server's first process."""

    number: signal.Signals


class AskServer(NamedTuple):
    """A question for the server: "health", "metrics", or "token" for one token."""

    what: str


class Quit(NamedTuple):
    """The end of the main process; systemd kills what is left in the cgroup."""

    code: int


class Instruction(Enum):
    """What needs no more words."""

    START = "start the server"
    LOOK = "read its processes"
    DUMP = "have its processes say where they stand: the journal gets what /proc shows, Python prints its stacks at SIGABRT"
    KILL = "SIGKILL for every process of the unit but ourselves"


Action = LogLine | NotifySystemd | SendSignal | AskServer | Quit | Instruction


def extend_timeout(seconds: float) -> dict[str, str]:
    """The field of sd_notify(3) with which systemd waits for so much longer."""
    return {"EXTEND_TIMEOUT_USEC": str(int(seconds * 1_000_000))}
