"""Measuring how fast a file is read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vllm_safe.host import disk_pace
from vllm_safe.host.disk_pace import DiskPace, measure_pace


def test_a_file_is_read_to_its_end(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(bytes(9_000_001))
    descriptor = os.open(file, os.O_RDONLY)
    try:
        found = measure_pace(descriptor)
    finally:
        os.close(descriptor)
    assert found.size == 9_000_001
    assert found.rate > 0


def test_a_long_one_for_as_long_as_was_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_pace, "_CHUNK", 4096)
    file = tmp_path / "weights"
    file.write_bytes(bytes(4096 * 100))
    clock = iter(range(100))
    monkeypatch.setattr(disk_pace.time, "monotonic", lambda: float(next(clock)))
    descriptor = os.open(file, os.O_RDONLY)
    try:
        found = measure_pace(descriptor, seconds=5.0)
    finally:
        os.close(descriptor)
    assert found.size == 4096 * 4  # at 1, 2, 3 and 4 s
    assert DiskPace(0, 0.0).rate == 0


def test_it_reads_as_the_loader_does() -> None:
    loader = Path(disk_pace.__file__).parents[1] / "engine/as_engine/vllm_safe_loader/ring_reader.py"
    assert {f"PIECE = {disk_pace._CHUNK >> 20} << 20", f"_AHEAD = {disk_pace._AT_ONCE}"} <= {
        line.partition("  #")[0] for line in loader.read_text().splitlines()
    }
