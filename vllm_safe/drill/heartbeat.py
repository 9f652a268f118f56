"""The heartbeat: a process that wants to run every 100 ms and prints for how long it could not. It ends when its standard input ends.

It is a process of its own, since a thread would also wait for other threads of its process. Standard library only.
"""

from __future__ import annotations

import os
import select
import sys
import time

BEAT = 0.1  # seconds


def main() -> None:
    """Print once a second the longest time between two beats since the last line, in seconds."""
    last = printed = time.monotonic()
    longest = 0.0
    while True:
        ready, _, _ = select.select([0], (), (), BEAT)
        if ready and not os.read(0, 512):
            return
        now = time.monotonic()
        longest, last = max(longest, now - last), now
        if now - printed >= 1.0:
            sys.stdout.write(f"{longest:.3f}\n")
            sys.stdout.flush()
            printed, longest = now, 0.0


if __name__ == "__main__":
    main()
