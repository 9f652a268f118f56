"""Readers in the guest: `loading_readers.py WAY FOLDER CACHE` touches what workers touch of a checkpoint, and prints JSON.

A file of FOLDER is TENSORS tensors of equal size. Each worker maps it, copies an eighth of each tensor and touches what lies between, in
the order of the file. Where the tensor is split by columns, an eighth of each row is copied, so that every page is read.
"""

from __future__ import annotations

import json
import mmap
import os
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "vllm_safe/engine/as_engine"))
sys.path.insert(0, str(Path(__file__).parent))  # in the guest, the loader is copied beside this file
from vllm_safe_loader.cache_room import decide_window
from vllm_safe_loader.shard_layout import StoredTensor, split_into_windows
from vllm_safe_loader.window_walk import walk_windows

WORKERS = 8
TENSORS, BY_COLUMNS = 10, 7  # of a file; the first of them are split by columns
ROWS, ROW = 816, 32 << 10  # of a tensor, and bytes of a row
TENSOR = ROWS * ROW
FILE = TENSORS * TENSOR  # 255 MiB
PIECE = 4 << 20  # bytes of a request for the disk's own pace
SECTOR = 512


def main() -> None:
    """Read all files of the folder in the named way, and print the seconds, and the reads of the disk meanwhile."""
    way, folder = sys.argv[1], Path(sys.argv[2])
    files = sorted(folder.iterdir())
    Path("/proc/sys/vm/drop_caches").write_text("3", "ascii")
    before, start = _disk(), time.monotonic()
    if way == "disk":
        _read_directly(files)
    else:
        _fork(WORKERS_BY_WAY[way](files, int(sys.argv[3])))
    seconds, after = time.monotonic() - start, _disk()
    requests, sectors = (new - old for new, old in zip(after, before, strict=True))
    sys.stdout.write(json.dumps({"seconds": seconds, "requests": requests, "read": sectors * SECTOR, "files": len(files) * FILE}) + "\n")


def _disk() -> tuple[int, int]:
    """Return the read requests and the sectors that the disk has completed."""
    words = Path("/sys/block/vda/stat").read_text("ascii").split()
    return int(words[0]), int(words[2])


def _read_directly(files: list[Path]) -> None:
    """Read in order and past the cache, in large requests."""
    buffer = mmap.mmap(-1, PIECE)
    for file in files:
        descriptor = os.open(file, os.O_RDONLY | os.O_DIRECT)
        offset = 0
        while got := os.preadv(descriptor, [buffer], offset):
            offset += got
        os.close(descriptor)


def _fork(work: Callable[[int], None]) -> None:
    """Run the workers to their end. Raises RuntimeError where one fails."""
    children = []
    for rank in range(WORKERS):
        if not (pid := os.fork()):
            work(rank)
            os._exit(0)
        children.append(pid)
    statuses = [os.waitpid(pid, 0)[1] for pid in children]
    if any(statuses):
        raise RuntimeError("a worker failed")


def _as_vllm(files: list[Path], _cache: int) -> Callable[[int], None]:
    """Read as with vLLM's own loader: each worker at its own pace, by page faults alone."""

    def work(rank: int) -> None:
        for file in files:
            with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY) as mapping, memoryview(mapping) as view:
                for index in range(TENSORS):
                    with view[index * TENSOR : (index + 1) * TENSOR] as tensor:
                        take(rank, index, tensor)

    return work


def _by_windows(files: list[Path], cache: int) -> Callable[[int], None]:
    """Read as with our loader, by its own code: one worker reads ahead, and all are in the same window."""
    most = decide_window(cache)
    layout = [StoredTensor(str(index), "U8", (TENSOR,), index * TENSOR, (index + 1) * TENSOR) for index in range(TENSORS)]
    windows = [window for file in files for window in split_into_windows(str(file), layout, most)]
    barrier = get_context("fork").Barrier(WORKERS)

    def work(rank: int) -> None:
        for window in walk_windows(windows, reads=rank == 0, room=cache, drop=True, meet=barrier.wait):
            for tensor in window.tensors:
                with Path(window.file).open("rb") as opened:
                    mapping = mmap.mmap(opened.fileno(), TENSOR, access=mmap.ACCESS_COPY, offset=tensor.begin)
                with mapping, memoryview(mapping) as view:
                    take(rank, int(tensor.name), view)

    return work


def take(rank: int, index: int, tensor: memoryview) -> None:
    """Copy the worker's eighth of the tensor, and touch every page that the copy of the real loader touches."""
    for begin, end in _parts(rank, index):
        bytes(tensor[begin:end])


def _parts(rank: int, index: int) -> Iterator[tuple[int, int]]:
    if index < BY_COLUMNS:
        width = ROW // WORKERS
        return ((row * ROW + rank * width, row * ROW + (rank + 1) * width) for row in range(ROWS))
    part = TENSOR // WORKERS
    return iter([(rank * part, (rank + 1) * part)])


WORKERS_BY_WAY = {"vllm": _as_vllm, "windows": _by_windows}

if __name__ == "__main__":
    main()
