"""Open connections of a server, counted in the kernel's tables: those of this machine, and a table with each state."""

from __future__ import annotations

import socket
from pathlib import Path

from vllm_safe.launch.connections import count_connections

TABLE = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:4651 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0
   1: 0100007F:4651 0100007F:C350 01 00000000:00000000 00:00000000 00000000     0        0 2 1 0 20 4 0 10 -1
   2: 0100007F:C350 0100007F:4651 01 00000000:00000000 00:00000000 00000000     0        0 3 1 0 20 4 0 10 -1
   3: 0100007F:4651 0100007F:C351 06 00000000:00000000 03:00000E0B 00000000     0        0 0 3 0
"""


def test_only_established_ones_at_the_servers_end_count(tmp_path: Path) -> None:
    table = tmp_path / "tcp"
    table.write_text(TABLE)
    assert count_connections(0x4651, [str(table)]) == 1
    assert count_connections(0x4652, [str(table)]) == 0
    assert count_connections(0x4651, [str(tmp_path / "none")]) == 0


def test_the_kernel_writes_such_a_table() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert count_connections(port) == 0
        with socket.create_connection(("127.0.0.1", port)):
            assert count_connections(port) == 1
