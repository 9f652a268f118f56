"""Readers in the guest. `loading_readers.py JSON` touches those pages of a checkpoint that workers touch, and prints JSON (see Task, main).

Each worker takes an eighth of each tensor, in the order of the file. If a tensor is split by columns, the eighth consists of parts of all
rows, so that every page is touched. The shapes are those of a large model, scaled down by the same factor as the files.
"""

from __future__ import annotations

import json
import mmap
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate, chain
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "vllm_safe/engine/as_engine"))  # loading.put_readers copies it to the guest
from vllm_safe_loader.ring_layout import decide_cache, decide_capacity, decide_window, place_windows
from vllm_safe_loader.ring_reader import RingReader
from vllm_safe_loader.ring_walk import RingWalk
from vllm_safe_loader.shard_layout import StoredTensor, split_into_windows
from vllm_safe_loader.shared_ring import RingShape, SharedRing

RANKS = 8
KIB = 1 << 10
LINEARS = 32  # linear layers in a file
SIZE = 7424 * KIB  # of the weight of a layer: a thirty-third of the file, as in shards of 4 GB
BY_COLUMNS = {"bf16": {5, 6}, "gptq": {0, 1, 2, 3, 4}}  # of the seven linear layers of a block; gptq stores them transposed
ROW = {"bf16": 16 * KIB, "gptq": 32 * KIB}
BESIDE = {"bf16": (), "gptq": (256 * KIB, 64 * KIB, 8 * KIB)}  # sizes of the other tensors of a layer: scales, zeros and g_idx
FILE = LINEARS * (SIZE + sum(BESIDE["gptq"]))  # bytes of a file that has room for either shape
PIECE = 4 << 20  # bytes of a request for the disk's own pace
COPIED = 64 * KIB  # bytes that a worker copies at once from a contiguous part
SECTOR = 512
PAUSE = 0.1  # seconds: more than a tensor takes from the disk


@dataclass(frozen=True)
class Task:
    """What is read, and how.

    unlike: each worker pauses at every eighth tensor. warm: the files are in the page cache before. times: how often they are read, one
    pass after the other. idle: the workers copy nothing.
    """

    way: str
    folder: str
    cache: int
    shape: str
    unlike: bool = False
    warm: bool = False
    count: int = 4  # of files
    times: int = 1
    idle: bool = False

    @property
    def files(self) -> list[str]:
        """The paths of the files, repeated for each pass."""
        return [str(file) for file in sorted(Path(self.folder).iterdir())[: self.count]] * self.times

    @property
    def layout(self) -> list[StoredTensor]:
        """The layout of each file."""
        sizes = list(chain.from_iterable((SIZE, *BESIDE[self.shape]) for _ in range(LINEARS)))
        ends = list(accumulate(sizes))
        return [StoredTensor(str(index), "U8", (size,), ends[index] - size, ends[index]) for index, size in enumerate(sizes)]

    def take(self, rank: int, index: int, tensor: memoryview) -> None:
        """Copy the worker's eighth of the tensor, and touch every page that the copy of the real loader touches."""
        if self.idle:
            return
        linear = index // (1 + len(BESIDE[self.shape]))
        for begin, end in self._parts(rank, len(tensor), by_columns=linear % 7 in BY_COLUMNS[self.shape]):
            bytes(tensor[begin:end])
        if self.unlike and linear % RANKS == rank and len(tensor) == SIZE:
            time.sleep(PAUSE)

    def _parts(self, rank: int, size: int, *, by_columns: bool) -> Iterator[tuple[int, int]]:
        row = ROW[self.shape]
        if by_columns and size > row:
            width = row // RANKS
            return ((start + rank * width, start + (rank + 1) * width) for start in range(0, size, row))
        part = size // RANKS
        return ((start, min(start + COPIED, (rank + 1) * part)) for start in range(rank * part, (rank + 1) * part, COPIED))


def main() -> None:
    """Do the task. Print how long it took, what the disk read meanwhile, and how much memory was used."""
    task = Task(**json.loads(sys.argv[1]))
    if task.warm:
        for file in task.files:
            _read_all(file, os.O_RDONLY)
    else:
        for file in task.files:
            _drop(file)
    before, start = _disk(), time.monotonic()
    if task.way == "disk":
        for file in task.files:
            _read_all(file, os.O_RDONLY | os.O_DIRECT)
    else:
        _fork(WORKERS[task.way](task))
    seconds, after = time.monotonic() - start, _disk()
    requests, sectors = (new - old for new, old in zip(after, before, strict=True))
    size = len(task.files) * (FILE if task.way == "disk" else task.layout[-1].end)
    answer = {"seconds": seconds, "requests": requests, "read": sectors * SECTOR, "size": size, "peak": _peak()}
    sys.stdout.write(json.dumps(answer) + "\n")


def _disk() -> tuple[int, int]:
    """Return the read requests and the sectors that the disk of the guest has completed; zeros outside of it."""
    try:
        words = Path("/sys/block/vda/stat").read_text("ascii").split()
    except FileNotFoundError:
        return 0, 0
    return int(words[0]), int(words[2])


def _peak() -> int:
    """Return the peak memory of the unit, including its page cache; 0 outside of the guest."""
    group = Path("/proc/self/cgroup").read_text("ascii").strip().removeprefix("0::")
    try:
        return int(Path(f"/sys/fs/cgroup{group}/memory.peak").read_text("ascii"))
    except FileNotFoundError:
        return 0


def _drop(file: str) -> None:
    """Drop a file from the page cache. What is not yet on the disk stays there."""
    descriptor = os.open(file, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def _read_all(file: str, flags: int) -> None:
    """Read a file in order and in large requests."""
    buffer = mmap.mmap(-1, PIECE)
    descriptor = os.open(file, flags)
    offset = 0
    while got := os.preadv(descriptor, [buffer], offset):
        offset += got
    os.close(descriptor)


Worker = Callable[[int], Iterator[int]]  # takes a rank, and yields the bytes of each tensor after taking its part of it


def _fork(worker: Worker) -> None:
    """Run the workers to their end. Raises RuntimeError if one fails."""
    children = []
    for rank in range(RANKS):
        if not (pid := os.fork()):
            for _ in worker(rank):
                pass
            os._exit(0)
        children.append(pid)
    statuses = [os.waitpid(pid, 0)[1] for pid in children]
    if any(statuses):
        raise RuntimeError("a worker failed")


def _as_vllm(task: Task) -> Worker:
    """Read as vLLM's own loader does: each worker at its own pace, by page faults alone."""
    layout = task.layout

    def work(rank: int) -> Iterator[int]:
        for file in task.files:
            with Path(file).open("rb") as opened:
                mapping = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY)
            with mapping, memoryview(mapping) as view:
                for index, stored in enumerate(layout):
                    with view[stored.begin : stored.end] as tensor:
                        task.take(rank, index, tensor)
                    yield stored.end - stored.begin

    return work


def _by_ring(task: Task) -> Worker:
    """Read with the code of our loader: one worker reads into a ring, and all workers take from it."""
    capacity = decide_capacity(task.cache, task.layout * task.count)
    windows = [window for file in task.files for window in split_into_windows(file, task.layout, decide_window(capacity))]
    places = place_windows(windows, capacity)
    ring = SharedRing.create(RingShape(RANKS, len(windows), capacity))
    creator = os.getpid()

    def work(rank: int) -> Iterator[int]:
        own = SharedRing.open(creator, ring.descriptor, ring.shape)
        if rank == 0:
            RingReader(own, places, decide_cache(task.cache, capacity)).start()
        for _, tensor, view in RingWalk(own, places, rank).take(lambda _: True):
            task.take(rank, int(tensor.name), view)
            yield tensor.end - tensor.begin

    return work


WORKERS = {"vllm": _as_vllm, "ring": _by_ring}  # by way

if __name__ == "__main__":
    main()
