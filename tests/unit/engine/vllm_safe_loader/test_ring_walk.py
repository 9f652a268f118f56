"""The walk through the windows, from real files and through a real ring, with threads in place of processes."""

from __future__ import annotations

import gc
import hashlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from pathlib import Path

import pytest

from vllm_safe.engine.as_engine.vllm_safe_loader import ring_reader
from vllm_safe.engine.as_engine.vllm_safe_loader.ring_layout import RingPlace, place_windows
from vllm_safe.engine.as_engine.vllm_safe_loader.ring_reader import RingReader
from vllm_safe.engine.as_engine.vllm_safe_loader.ring_walk import RingWalk
from vllm_safe.engine.as_engine.vllm_safe_loader.shard_layout import ReadWindow, StoredTensor, split_into_windows
from vllm_safe.engine.as_engine.vllm_safe_loader.shared_ring import RingShape, SharedRing

RANKS = 3
KIB = 1 << 10
SIZES = (0, 7, 9 * KIB, 30 * KIB, 100, 64 * KIB, 0, 500 * KIB, 5 * KIB, 40 * KIB, 64 * KIB, 64 * KIB, 64 * KIB, 3)
FILES = 3
CAPACITIES = [192 * KIB, 256 * KIB, 512 * KIB, 4096 * KIB]  # all are too small for the largest tensor, but for the last two
TINY = 4 * KIB


class Checkpoint:
    """Files of random bytes, whose tensors begin anywhere."""

    def __init__(self, folder: Path) -> None:
        self.files = [folder / str(number) for number in range(FILES)]
        self.layouts: dict[str, list[StoredTensor]] = {}
        for number, file in enumerate(self.files):
            start = 1000 + number
            ends = list(accumulate(SIZES, initial=start))
            file.write_bytes(b"".join(hashlib.sha256(f"{number} {at}".encode()).digest() for at in range(0, ends[-1], 32))[: ends[-1]])
            self.layouts[str(file)] = [
                StoredTensor(f"{number}.{index}", "U8", (size,), begin, begin + size)
                for index, (size, begin) in enumerate(zip(SIZES, ends, strict=False))
            ]
        self.bytes = {
            tensor.name: file.read_bytes()[tensor.begin : tensor.end] for file in self.files for tensor in self.layouts[str(file)]
        }

    def windows(self, most: int) -> list[ReadWindow]:
        return [window for file, layout in self.layouts.items() for window in split_into_windows(file, layout, most)]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    return Checkpoint(tmp_path)


@pytest.fixture
def _cold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of a file is in the cache, as far as the reader can tell."""
    monkeypatch.setattr(ring_reader, "_is_cached", lambda *_: False)


Work = Callable[[int, Iterator[tuple[int, StoredTensor, memoryview]]], object]


def walk(checkpoint: Checkpoint, work: Work, capacity: int, ranks: int = RANKS, cache: int = 0) -> list[object]:
    """Have each of the threads do its work with what it is given; return what they return. One that waits for ever fails."""
    places = place_windows(checkpoint.windows(TINY), capacity)
    ring = SharedRing.create(RingShape(ranks, len(places), capacity))

    def run(rank: int) -> object:
        taken = RingWalk(SharedRing.open(os.getpid(), ring.descriptor, ring.shape), places, rank).take(lambda _: True)
        try:
            return work(rank, taken)
        finally:
            taken.close()

    reader = RingReader(ring, places, cache)
    reader.start()
    with ThreadPoolExecutor(ranks) as pool:
        results = list(pool.map(run, range(ranks), timeout=60))
    reader.join()
    ring.close()
    return results


def compare(checkpoint: Checkpoint, taken: Iterator[tuple[int, StoredTensor, memoryview]]) -> list[str]:
    names = []
    for _, tensor, view in taken:
        assert view == checkpoint.bytes[tensor.name], tensor
        names.append(tensor.name)
    return names


@pytest.mark.usefixtures("_cold")
@pytest.mark.parametrize("capacity", CAPACITIES)
@pytest.mark.parametrize("ranks", [1, 8])
@pytest.mark.parametrize("cache", [0, 1 << 20], ids=["by turns", "from the cache"])
def test_all_get_every_tensor_in_order(checkpoint: Checkpoint, capacity: int, ranks: int, cache: int) -> None:
    assert walk(checkpoint, lambda _, taken: compare(checkpoint, taken), capacity, ranks, cache) == [list(checkpoint.bytes)] * ranks


def test_what_is_in_the_page_cache_waits_for_no_reading_thread(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    all_taken = threading.Barrier(RANKS + 2)  # with the two threads that read
    monkeypatch.setattr(ring_reader, "_is_cached", lambda *_: True)
    monkeypatch.setattr(RingReader, "_take_piece", lambda _: all_taken.wait(30) and None)

    def take(_: int, taken: Iterator[tuple[int, StoredTensor, memoryview]]) -> list[str]:
        names = compare(checkpoint, taken)
        all_taken.wait(30)
        return names

    assert walk(checkpoint, take, CAPACITIES[0]) == [list(checkpoint.bytes)] * RANKS


@pytest.mark.usefixtures("_cold")
def test_a_tensor_that_is_too_large_for_the_ring_is_in_the_cache_before_it_is_taken(checkpoint: Checkpoint) -> None:
    read: list[bool] = []

    def take(_: int, taken: Iterator[tuple[int, StoredTensor, memoryview]]) -> None:
        for _, tensor, _view in taken:
            if tensor.end - tensor.begin == max(SIZES):
                with checkpoint.files[int(tensor.name[0])].open("rb") as file:
                    read.append(os.preadv(file.fileno(), [bytearray(4096)], tensor.end - 4096, os.RWF_NOWAIT) == 4096)

    for file in checkpoint.files:
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    walk(checkpoint, take, CAPACITIES[0], ranks=1, cache=1 << 20)
    assert read == [True] * FILES


def test_what_is_in_the_cache_is_not_read_again(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ring_reader, "_read", lambda _: pytest.fail("it was read"))
    for file in checkpoint.files:
        file.read_bytes()
    assert walk(checkpoint, lambda _, taken: compare(checkpoint, taken), CAPACITIES[0]) == [list(checkpoint.bytes)] * RANKS


@pytest.mark.usefixtures("_cold")
def test_a_file_system_that_reads_only_through_its_cache(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def refuse(path: str, flags: int, *rest: int) -> int:
        if flags & os.O_DIRECT:
            raise OSError(22, "Invalid argument")
        return real(path, flags, *rest)

    monkeypatch.setattr(os, "open", refuse)
    assert walk(checkpoint, lambda _, taken: compare(checkpoint, taken), CAPACITIES[0]) == [list(checkpoint.bytes)] * RANKS


@pytest.mark.usefixtures("_cold")
@pytest.mark.parametrize("capacity", CAPACITIES)
@pytest.mark.parametrize("every", [1, 5], ids=["all", "some"])
def test_a_tensor_that_is_kept_stays_as_it_was(checkpoint: Checkpoint, capacity: int, every: int) -> None:
    def keep(rank: int, taken: Iterator[tuple[int, StoredTensor, memoryview]]) -> None:
        kept = [(tensor, view) for count, (_, tensor, view) in enumerate(taken) if rank and not count % every]
        for tensor, view in kept:
            assert view == checkpoint.bytes[tensor.name], tensor

    walk(checkpoint, keep, capacity)


@pytest.mark.usefixtures("_cold")
@pytest.mark.parametrize("readable", [True, False], ids=["seen", "not seen"])
def test_who_writes_into_a_tensor_changes_no_other(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, readable: bool) -> None:  # noqa: FBT001
    if not readable:
        monkeypatch.setattr(os, "pread", lambda *_: b"")

    def scribble(rank: int, taken: Iterator[tuple[int, StoredTensor, memoryview]]) -> None:
        for _, tensor, view in taken:
            assert view == checkpoint.bytes[tensor.name], tensor
            if rank:
                view[:] = bytes(len(view))

    walk(checkpoint, scribble, CAPACITIES[0])


@pytest.mark.usefixtures("_cold")
@pytest.mark.parametrize("leave", [{0: 1}, {1: 2}, {0: 30, 1: 1, 2: 5}, {0: 8, 1: 8, 2: 8}])
def test_nobody_waits_for_one_who_has_left_and_who_keeps_what_he_has(checkpoint: Checkpoint, leave: dict[int, int]) -> None:
    def go(rank: int, taken: Iterator[tuple[int, StoredTensor, memoryview]]) -> list[str]:
        if rank not in leave:
            return compare(checkpoint, taken)
        held = [next(taken) for _ in range(leave[rank])]
        taken.close()  # type: ignore[attr-defined] # it is a generator
        assert all(view == checkpoint.bytes[tensor.name] for _, tensor, view in held)
        return []

    whole = walk(checkpoint, go, CAPACITIES[0])
    assert whole == [[] if rank in leave else list(checkpoint.bytes) for rank in range(RANKS)]


@pytest.mark.usefixtures("_cold")
@pytest.mark.parametrize("capacity", CAPACITIES)
def test_a_file_that_shrinks_meanwhile_is_told_by_who_takes_it(checkpoint: Checkpoint, capacity: int) -> None:
    os.truncate(checkpoint.files[1], 50 * KIB)

    def take(_: int, taken: Iterator[tuple[int, StoredTensor, memoryview]]) -> str:
        with pytest.raises(ValueError, match="was truncated"):
            compare(checkpoint, taken)
        return "told"

    assert walk(checkpoint, take, capacity) == ["told"] * RANKS


def test_a_file_that_is_gone_is_told_by_who_takes_it(checkpoint: Checkpoint) -> None:
    checkpoint.files[2].unlink()

    def take(_: int, taken: Iterator[tuple[int, StoredTensor, memoryview]]) -> str:
        with pytest.raises(FileNotFoundError):
            compare(checkpoint, taken)
        return "told"

    assert walk(checkpoint, take, CAPACITIES[0]) == ["told"] * RANKS


class MeetingLock:
    """A lock after whose release its users wait for each other."""

    def __init__(self, users: int) -> None:
        self._lock, self._barrier = threading.Lock(), threading.Barrier(users)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_error: object) -> None:
        self._lock.release()
        self._barrier.wait(30)


def test_only_the_last_of_two_threads_that_end_at_once_frees_the_ring(monkeypatch: pytest.MonkeyPatch) -> None:
    ring = SharedRing.create(RingShape(1, 0, 4096))
    reader = RingReader(ring, [])
    ends: list[None] = []
    monkeypatch.setattr(reader, "_count_lock", MeetingLock(2))
    monkeypatch.setattr(reader, "_finish", lambda: ends.append(None))
    reader.start()
    reader.join()
    assert len(ends) == 1
    ring.close()


@pytest.mark.usefixtures("_cold")
@pytest.mark.parametrize(("fast", "more"), [(0, True), (1 << 60, False)])
def test_a_fast_disk_gets_more_reads_at_once(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, fast: int, *, more: bool) -> None:
    readers: set[int] = set()
    read = ring_reader._read
    monkeypatch.setattr(ring_reader, "_FAST", fast)
    monkeypatch.setattr(ring_reader, "_JUDGED_AFTER", 1 << 10)
    monkeypatch.setattr(ring_reader, "_read", lambda piece: readers.add(threading.get_ident()) or time.sleep(0.01) or read(piece))
    assert walk(checkpoint, lambda _, taken: compare(checkpoint, taken), CAPACITIES[-1]) == [list(checkpoint.bytes)] * RANKS
    assert (len(readers) > 2) == more


@pytest.mark.usefixtures("_cold")
def test_of_the_ring_only_the_last_window_is_left_where_a_tensor_is_kept(checkpoint: Checkpoint) -> None:
    places: list[RingPlace] = place_windows(checkpoint.windows(TINY), CAPACITIES[0])
    ring = SharedRing.create(RingShape(1, len(places), CAPACITIES[0]))
    reader = RingReader(ring, places)
    reader.start()
    taken = RingWalk(SharedRing.open(os.getpid(), ring.descriptor, ring.shape), places, 0).take(lambda _: True)
    kept = deque(((tensor, view) for _, tensor, view in taken), maxlen=1).pop()
    reader.join()
    gc.collect()
    left = places[-1].size + 4096  # of the header
    assert os.fstat(ring.descriptor).st_blocks * 512 == left
    assert kept[1] == checkpoint.bytes[kept[0].name]
    ring.close()
