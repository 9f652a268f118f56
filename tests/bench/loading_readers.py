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
from collections.abc import Iterator
from pathlib import Path

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
        _fork(way, files)
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


def _fork(way: str, files: list[Path]) -> None:
    """Run the workers to their end. Raises RuntimeError where one fails."""
    if way != "vllm":
        raise ValueError(way)
    children = []
    for rank in range(WORKERS):
        if not (pid := os.fork()):
            _as_vllm(rank, files)
            os._exit(0)
        children.append(pid)
    if any(os.waitpid(pid, 0)[1] for pid in children):
        raise RuntimeError("a worker failed")


def _as_vllm(rank: int, files: list[Path]) -> None:
    """Read as a worker with vLLM's own loader: each at its own pace, by page faults alone."""
    for file in files:
        with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY) as mapping, memoryview(mapping) as view:
            for index in range(TENSORS):
                with view[index * TENSOR : (index + 1) * TENSOR] as tensor:
                    take(rank, index, tensor)


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


if __name__ == "__main__":
    main()
