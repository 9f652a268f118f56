"""The actions that the pure core of the main process returns, for its loop to carry out in order."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from enum import Enum
from typing import NamedTuple


class LogLine(NamedTuple):
    """A line for the journal, with a level of syslog(3): `journalctl -p err` shows level 3 and below."""

    text: str
    level: int = 6


class NotifySystemd(NamedTuple):
    """Fields of sd_notify(3)."""

    fields: Mapping[str, str]


class SendSignal(NamedTuple):
    """A signal to send to the server's first process."""

    number: signal.Signals


class AskServer(NamedTuple):
    """A request to send to the server: "health", "metrics", or "token" (a completion of one token)."""

    what: str


class Quit(NamedTuple):
    """The exit of the main process, with its exit status; systemd kills the processes that are left in the cgroup."""

    code: int


class Instruction(Enum):
    """Actions without parameters."""

    MEET = "connect to the other machines of the model"
    GO = "tell the other machines that all are connected"
    START = "start the server"
    LOOK = "read the processes of the server"
    DUMP = "log the state of each process from /proc, and have Python print its stacks (SIGABRT)"
    KILL = "send SIGKILL to every process of the unit except the main process"


Action = LogLine | NotifySystemd | SendSignal | AskServer | Quit | Instruction


def extend_timeout(seconds: float) -> dict[str, str]:
    """Return the field of sd_notify(3) that extends systemd's start or stop timeout by a time in seconds."""
    return {"EXTEND_TIMEOUT_USEC": str(int(seconds * 1_000_000))}
