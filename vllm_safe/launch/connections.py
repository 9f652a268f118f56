"""The connections of a server, from the kernel's tables of sockets."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

_TABLES = ("/proc/net/tcp", "/proc/net/tcp6")
_ESTABLISHED = "01"  # include/net/tcp_states.h


def count_connections(port: int, tables: Iterable[str] = _TABLES) -> int:
    """Return how many connections to a local port are open, at this end of them."""
    end = f":{port:04X}"
    count = 0
    for table in tables:
        try:
            with Path(table).open(encoding="ascii") as file:
                next(file, "")
                # Columns of proc_pid_net(5): number, local address, remote address, state.
                count += sum(1 for line in file if (row := line.split(None, 4))[1].endswith(end) and row[3] == _ESTABLISHED)
        except OSError:  # no IPv6
            continue
    return count
