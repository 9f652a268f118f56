"""Kernel tunables, read from a fake /sys."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vllm_safe.tunables import tunable_facts
from vllm_safe.tunables.tunable_facts import LRU_GEN, read_tunables


@pytest.fixture
def root(tmp_path: Path) -> Path:
    file = tmp_path / LRU_GEN.lstrip("/")
    file.parent.mkdir(parents=True)
    file.write_text("0x0007\n")
    return tmp_path


def test_what_a_kernel_has(root: Path) -> None:
    assert read_tunables(root) == {LRU_GEN: "0x0007"}


def test_a_kernel_before_6_1_has_none(tmp_path: Path) -> None:
    assert read_tunables(tmp_path) == {}


def test_what_cannot_be_written_is_none(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container's /sys is that of the host, mounted read-only."""
    read_only = os.statvfs_result((0,) * 8 + (os.ST_RDONLY, 0))
    monkeypatch.setattr(tunable_facts.os, "statvfs", lambda _: read_only)
    assert read_tunables(root) == {}
