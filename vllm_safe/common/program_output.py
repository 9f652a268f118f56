"""Reading the output of a program, without subprocess: that module would stay in the recorder's memory, 2 MB for a call an hour."""

from __future__ import annotations

import os
import select
import signal
import time

_LONGEST = 1e6  # seconds, for select(2), which takes no infinity
_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}


def program_output(argv: list[str], *, timeout: float = 10.0, most: int = 1 << 21) -> str:
    """Return the output of a program, at most `most` bytes; "" if it cannot be run. It is killed after `timeout` seconds."""
    return try_program_output(argv, timeout=timeout, most=most)[0]


def try_program_output(argv: list[str], *, timeout: float = 10.0, most: int = 1 << 21) -> tuple[str, bool]:
    """Return the output of a program as program_output does, and whether it is the whole output."""
    reading, writing = os.pipe()
    try:
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        streams = [(os.POSIX_SPAWN_DUP2, source, target) for source, target in ((null, 0), (writing, 1), (null, 2))]
        pid = os.posix_spawnp(argv[0], argv, _ENVIRONMENT, file_actions=streams, setsigdef=[signal.SIGTERM, signal.SIGPIPE])
    except OSError:
        os.close(reading)
        return "", False
    finally:
        os.close(writing)
        os.close(null)
    content, until, whole = b"", time.monotonic() + timeout, False
    while len(content) < most and (left := until - time.monotonic()) > 0 and select.select([reading], [], [], min(left, _LONGEST))[0]:
        if not (more := os.read(reading, 1 << 16)):
            whole = True
            break
        content += more
    else:
        os.kill(pid, signal.SIGKILL)
    os.close(reading)
    os.waitpid(pid, 0)
    return content.decode(errors="replace"), whole
