"""The walk through the windows, with threads in place of processes."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from vllm_safe.engine.as_engine.vllm_safe_loader.shard_layout import ReadWindow, StoredTensor
from vllm_safe.engine.as_engine.vllm_safe_loader.window_walk import read_window, walk_windows

WORKERS = 3
SIZES = (10, 10, 30, 10, 200, 10)


@pytest.fixture
def windows(tmp_path: Path) -> list[ReadWindow]:
    file = tmp_path / "shard"
    file.write_bytes(bytes(sum(SIZES)))
    begins = [sum(SIZES[:index]) for index in range(len(SIZES))]
    return [
        ReadWindow(str(file), (StoredTensor(str(begin), "U8", (size,), begin, begin + size),))
        for begin, size in zip(begins, SIZES, strict=True)
    ]


def walk(windows: Sequence[ReadWindow], room: int, leave: dict[int, int]) -> list[list[ReadWindow]]:
    """Walk with WORKERS threads, each to its end or to the window at which it leaves; fail where one waits for ever."""
    barrier = threading.Barrier(WORKERS, timeout=30)

    def work(rank: int) -> list[ReadWindow]:
        given = walk_windows(windows, reads=rank == 0, room=room, drop=True, meet=barrier.wait)
        seen = []
        for window in given:
            seen.append(window)
            if len(seen) == leave.get(rank):
                break
        given.close()
        return seen

    with ThreadPoolExecutor(WORKERS) as pool:
        return list(pool.map(work, range(WORKERS)))


@pytest.mark.parametrize("room", [0, 15, 25, 100, 1000])
def test_all_get_every_window_in_order_whatever_the_room(windows: list[ReadWindow], room: int) -> None:
    assert walk(windows, room, {}) == [windows] * WORKERS


@pytest.mark.parametrize("room", [15, 1000])
@pytest.mark.parametrize("leave", [{0: 1}, {1: 2}, {0: 3, 1: 1, 2: 5}])
def test_nobody_waits_for_one_who_has_left(windows: list[ReadWindow], room: int, leave: dict[int, int]) -> None:
    seen = walk(windows, room, leave)
    assert [len(one) for one in seen] == [leave.get(rank, len(windows)) for rank in range(WORKERS)]


def test_a_window_is_read_whole_and_only_where_it_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "shard"
    file.write_bytes(bytes(5 << 20))
    window = ReadWindow(str(file), (StoredTensor("a", "U8", (), 100, 5 << 20),))
    got: list[int] = []
    read = os.preadv

    def note(descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
        got.append(read(descriptor, buffers, offset))
        return got[-1]

    monkeypatch.setattr(os, "preadv", note)
    read_window(window, window.size - 1)
    assert not got
    read_window(window, window.size)
    assert sum(got) == window.size


def test_a_file_that_shrinks_meanwhile_ends_no_walk(windows: list[ReadWindow]) -> None:
    os.truncate(windows[0].file, 5)
    assert walk(windows, 100, {}) == [windows] * WORKERS
