"""An ordinary service that is short of memory: with a MemoryHigh= below its 80 MiB it waits for memory, and its own limit never ends it."""

from __future__ import annotations

import mmap
import random

PAGES = 80 * 256

memory = mmap.mmap(-1, PAGES * 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
while True:
    memory[random.randrange(PAGES) * 4096] = 1  # noqa: S311 - not a secret
