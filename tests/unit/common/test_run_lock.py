"""One run at a time; the next starts when the first has ended."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from vllm_safe.common import run_lock


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(run_lock, "RUN", tmp_path / "run")
    return tmp_path / "run"


def test_free_it_is_taken_without_a_word(run: Path) -> None:
    with run_lock.hold_lock("swap", pytest.fail), pytest.raises(BlockingIOError):
        _try(run)
    _try(run)


def test_taken_it_is_waited_for(run: Path) -> None:
    run.mkdir()
    other = os.open(run / "swap.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(other, fcntl.LOCK_EX)
    waited = []

    def end_the_other() -> None:
        waited.append(True)
        os.close(other)

    with run_lock.hold_lock("swap", end_the_other), pytest.raises(BlockingIOError):
        _try(run)
    assert waited == [True]


def test_a_link_in_its_place_is_not_followed(run: Path) -> None:
    run.mkdir()
    (run / "swap.lock").symlink_to(target := run / "elsewhere")
    with pytest.raises(OSError, match="symbolic links"), run_lock.hold_lock("swap", pytest.fail):
        pass
    assert not target.exists()


def _try(run: Path) -> None:
    handle = os.open(run / "swap.lock", os.O_RDWR)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(handle)
