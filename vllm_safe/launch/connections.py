"""The connections to a server, from the kernel's socket tables."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

_TABLES = ("/proc/net/tcp", "/proc/net/tcp6")
_ESTABLISHED = "01"  # include/net/tcp_states.h


def count_connections(port: int, tables: Iterable[str] = _TABLES) -> int:
    """Return how many connections to a local port are established. Only the server's end of each counts."""
    suffix = f":{port:04X}"
    count = 0
    for table in tables:
        try:
            with Path(table).open(encoding="ascii") as file:
                next(file, "")
                # Columns of proc_pid_net(5): number, local address, remote address, state.
                count += sum(1 for line in file if (row := line.split(None, 4))[1].endswith(suffix) and row[3] == _ESTABLISHED)
        except OSError:  # the kernel may have no IPv6
            continue
    return count
