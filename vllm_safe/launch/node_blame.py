"""The decision whether a server ended because of another machine of its model. Pure.

When a worker dies, its connections close. The workers on other machines may then fail, and their servers end, before the server of the dead
worker has noticed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from vllm_safe.causes.cause import find_cause
from vllm_safe.causes.messages import FOLLOWS

# gloo: transport/tcp/pair.cc; NCCL: ncclRemoteError; ZeroMQ and torch's TCPStore.
_LOST = re.compile(
    r"Connection (?:closed|reset) by peer|Broken ?[Pp]ipe|remote process exited|ncclRemoteError|Connection was likely closed|"
    r"recvValue failed|sendBytes failed"
)
_MAY_FOLLOW = FOLLOWS | {"nccl-error", "nccl-timeout", ""}
# By any signal but SIGABRT, with which torch ends itself after errors of NCCL. vLLM may not know the signal yet.
_KILLED_HERE = re.compile(r"died unexpectedly \(exit code: -(?!6\))\d+\)")
_DIED_HERE = re.compile(r"died unexpectedly \(exit code: None\)")


def find_lost_connection(head: Sequence[str], tail: Sequence[str], *, served: bool) -> str:
    """Return the line in which a server says that another process closed a connection, if nothing else explains its end; else ""."""
    lines = [*head, *tail]
    at = next((number for number, line in enumerate(lines) if _LOST.search(line)), None)
    if at is None or any(_KILLED_HERE.search(line) for line in lines) or any(_DIED_HERE.search(line) for line in lines[:at]):
        return ""
    message = find_cause(head, tail, served=served)
    if message and (message.code not in _MAY_FOLLOW or (not message.code and _is_in(message.line, lines[:at]))):
        return ""
    return lines[at]


def _is_in(error: str, lines: Sequence[str]) -> bool:
    return any(error[:80] in " ".join(line.split()) for line in lines)
