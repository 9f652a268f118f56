"""The memory that a process may have."""

from __future__ import annotations

from pathlib import Path

import pytest

from vllm_safe.engine.as_engine.vllm_safe_loader.memory_room import read_room
from vllm_safe.launch import page_cache

MIB = 1 << 20


def group(folder: Path, limit: str, current: int, cached: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(limit)
    (folder / "memory.current").write_text(str(current))
    (folder / "memory.stat").write_text(f"anon 1\nactive_file {cached}\ninactive_file 0\n")


@pytest.mark.parametrize(
    ("slice_limit", "room"),
    [("max", 400), (str(700 * MIB), 200)],
    ids=["that of the unit", "that of all models, where it is less"],
)
def test_the_least_of_all_limits_counts(tmp_path: Path, slice_limit: str, room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/vllm.slice/vllm@x.service\n")
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9 kB\nMemAvailable:  1048576 kB\n")
    group(tmp_path / "cgroup/vllm.slice/vllm@x.service", str(600 * MIB), 300 * MIB, 100 * MIB)
    group(tmp_path / "cgroup/vllm.slice", slice_limit, 600 * MIB, 100 * MIB)
    assert read_room(tmp_path / "proc", tmp_path / "cgroup") == room * MIB
    # The main process has the same code, since neither can import the other's.
    monkeypatch.setattr(page_cache, "_CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(page_cache, "parse_meminfo", lambda _: {"MemAvailable": 1 << 30})
    assert page_cache.read_cache_room(tmp_path / "cgroup/vllm.slice/vllm@x.service") == room * MIB


def test_without_limits_what_is_available_counts(tmp_path: Path) -> None:
    (tmp_path / "self").mkdir()
    (tmp_path / "self/cgroup").write_text("0::/\n")
    (tmp_path / "meminfo").write_text("MemAvailable: 1024 kB\n")
    assert read_room(tmp_path, tmp_path / "none") == MIB
