"""Load a checkpoint again and again in the place of a model server: `load_hog.py KIND RAM SECONDS [BYTES READS]`, like hog.py.

Eight workers read it, either through the ring of our loader or as vLLM's own loader does (loading_readers.py). At the beginning, nothing of
it is in the page cache. In the kind `stream`, the workers do not copy from the ring, so that the disk is the limit, not the CPUs. BYTES is
the size of a read and READS how many are made at once; by default, both are as shipped. The program runs in the guest.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3] / "vllm_safe/engine/as_engine"))
sys.path.insert(0, str(Path(__file__).parents[3]))  # in the guest, too: setups.put_hogs
from vllm_safe_loader import ring_reader
from vllm_safe_loader.memory_room import read_room

from tests.bench.loading_readers import RANKS, WORKERS, Task, Worker
from tests.bench.login import hog

FOLDER = "/srv/checkpoint"
PACE = 250 << 20  # bytes per second: more than the disk of the bed has
TASKS = {
    "load": Task("ring", FOLDER, 0, "gptq"),
    "load-vllm": Task("vllm", FOLDER, 0, "gptq"),
    "stream": Task("ring", FOLDER, 0, "gptq", idle=True),
}


def main() -> None:
    """Start the workers, and wait to be killed: the workers open the ring through this process."""
    task, seconds, request = TASKS[sys.argv[1]], float(sys.argv[3]), [int(word) for word in sys.argv[4:]]
    if request:
        ring_reader.PIECE, ring_reader._AHEAD = request
    for file in task.files:
        with Path(file).open("rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    size = sum(Path(file).stat().st_size for file in task.files)
    worker = WORKERS[task.way](replace(task, cache=read_room(), times=1 + int(seconds * PACE / size)))
    hog.start_crew([partial(_count_pages, worker, rank) for rank in range(RANKS)])
    while True:
        time.sleep(3600)


def _count_pages(worker: Worker, rank: int) -> Iterator[int]:
    """Yield an eighth of the pages of each tensor, so that the eight workers together count each page once."""
    for size in worker(rank):
        yield size // RANKS // hog.PAGE


if __name__ == "__main__":
    main()
