"""A slow cable: `python slow_cable.py ONE OTHER DELAY LOSS` carries frames between two interfaces, late, and loses some of them.

DELAY is in seconds for each direction, LOSS is the share of frames that are lost. It stands in for netem, which not every kernel has.
"""

from __future__ import annotations

import heapq
import random
import select
import socket
import sys
import time
from contextlib import suppress

_ALL_PROTOCOLS = 3  # ETH_P_ALL
_OUTGOING = 4  # PACKET_OUTGOING
_BUFFER = 1 << 24  # bytes of frames that wait to be read
_LONGEST = 1 << 17  # bytes of a frame


def main(one: str, other: str, delay: float, loss: float) -> None:
    """Carry frames until the process is killed."""
    chance = random.Random(1)  # noqa: S311 - the same frames are lost each time
    ends = _open(one), _open(other)
    opposite = {ends[0]: ends[1], ends[1]: ends[0]}
    on_the_way: list[tuple[float, int, socket.socket, bytes]] = []
    number = 0
    while True:
        now = time.monotonic()
        while on_the_way and on_the_way[0][0] <= now:
            _, _, end, frame = heapq.heappop(on_the_way)
            with suppress(OSError):  # the interface is gone
                end.send(frame)
        wait = max(0.0, on_the_way[0][0] - now) if on_the_way else None
        for end in select.select(ends, (), (), wait)[0]:
            for frame in _arrived(end):
                number += 1
                if chance.random() >= loss:
                    heapq.heappush(on_the_way, (time.monotonic() + delay, number, opposite[end], frame))


def _open(interface: str) -> socket.socket:
    end = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ALL_PROTOCOLS))
    end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
    end.bind((interface, 0))
    end.settimeout(0)
    return end


def _arrived(end: socket.socket) -> list[bytes]:
    frames = []
    with suppress(BlockingIOError):
        while True:
            frame, address = end.recvfrom(_LONGEST)
            if address[2] != _OUTGOING:
                frames.append(frame)
    return frames


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]), float(sys.argv[4]))
