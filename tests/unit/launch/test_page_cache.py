"""The page cache of this machine, with files on its disk."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.builders.trees import drop_from_cache
from vllm_safe.common.sizes import MIB
from vllm_safe.launch import page_cache


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Return a file of 2 MiB that is on the disk and not in the cache."""
    path = tmp_path / "file"
    path.write_bytes(os.urandom(2 * MIB))
    drop_from_cache(path)
    if not page_cache.is_on_disk(str(path)) or sum(_resident(path)):
        pytest.skip("the temporary folder is in memory")
    return path


def _resident(path: Path) -> bytes:
    with path.open("rb") as opened:
        return page_cache.resident_pages(opened.fileno(), 0, 2 * MIB)


def test_what_is_asked_for_comes_into_the_cache_and_nothing_else(file: Path) -> None:
    page_cache.request_reading([("/nowhere", 0, 4096), (str(file), MIB, 128 << 10), (str(file.parent), 0, 4096)])
    page_cache.wait_for_page(str(file), MIB)
    end = time.monotonic() + 10
    while sum(_resident(file)) < 32 and time.monotonic() < end:
        time.sleep(0.01)
    assert _resident(file) == bytes(256) + b"\1" * 32 + bytes(256 - 32)


def test_a_link_is_not_followed(file: Path) -> None:
    link = file.with_name("link")
    link.symlink_to(file)
    page_cache.request_reading([(str(link), 0, 4096)])
    page_cache.wait_for_page(str(link), 0)
    assert not sum(_resident(file))


def test_a_file_knows_where_it_is(file: Path) -> None:
    with file.open("rb") as opened:
        extents = page_cache.file_extents(opened.fileno())
    assert sum(length for _, _, length in extents) in {0, 2 * MIB}  # 0: this file system does not say


def test_what_is_not_a_file_on_a_disk_has_no_place_there() -> None:
    folder = os.open("/proc/self", os.O_RDONLY)
    try:
        assert page_cache.file_extents(folder) == ()
    finally:
        os.close(folder)
    assert not page_cache.is_on_disk("/dev/shm") or "/dev/shm" not in Path("/proc/self/mountinfo").read_text("ascii")  # noqa: S108


def test_the_room_is_what_the_tightest_limit_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_cache, "_CGROUPS", tmp_path)
    unit = tmp_path / "vllm.slice/vllm@qwen.service"
    unit.mkdir(parents=True)
    (unit / "memory.max").write_text("max\n")
    assert page_cache.read_cache_room(unit) > 100 * MIB  # of this machine
    (unit.parent / "memory.max").write_text(f"{100 * MIB}\n")
    (unit.parent / "memory.current").write_text(f"{90 * MIB}\n")
    (unit.parent / "memory.stat").write_text(f"active_file {20 * MIB}\ninactive_file {10 * MIB}\n")
    assert page_cache.read_cache_room(unit) == 40 * MIB
    (unit / "memory.max").write_text(f"{30 * MIB}\n")
    (unit / "memory.current").write_text(f"{40 * MIB}\n")
    assert page_cache.read_cache_room(unit) == 0
