"""The cache of the testbeds: complete or not there, built once, swept when an owner is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.beds import cache

OWNER = """
import sys, time
from pathlib import Path
from tests.beds import cache
cache.ROOT = Path(sys.argv[1])
folder = cache.RunFolder("bed")
print(folder.path.name, flush=True)
time.sleep(20)
"""


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(cache, "ROOT", tmp_path)
    return tmp_path


def test_what_was_made_is_made_once() -> None:
    made = []

    def make(folder: Path) -> None:
        made.append(folder)
        (folder / "file").write_text("whole")

    for _ in range(2):
        assert (cache.cached("trees", "key", make) / "file").read_text() == "whole"
    assert len(made) == 1


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_build_leaves_nothing_that_looks_complete(root: Path, error: type[BaseException]) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").touch()
        raise error

    with pytest.raises(error):
        cache.cached("trees", "key", fail)
    assert not (root / "trees/key").exists()
    whole = cache.cached("trees", "key", lambda folder: (folder / "all").touch())
    assert [path.name for path in whole.iterdir()] == ["all"]


def test_what_nobody_wanted_for_a_month_goes_when_something_new_is_made(root: Path) -> None:
    for key in ("old", "used"):
        cache.cached("trees", key, lambda folder: (folder / "file").touch())
    for key in ("old", "used"):
        os.utime(root / f"trees/.{key}.lock", (0, 0))
    cache.cached("trees", "used", lambda _: None)
    assert (root / "trees/old").exists()
    cache.cached("trees", "new", lambda _: None)
    assert sorted(path.name for path in (root / "trees").iterdir()) == [".new.lock", ".used.lock", "new", "used"]


def test_the_folder_of_a_living_owner_stays_and_that_of_a_dead_one_goes(root: Path) -> None:
    swept: list[str] = []
    command = [sys.executable, "-c", OWNER, str(root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3]) as owner:
        assert owner.stdout is not None
        name = owner.stdout.readline().strip()
        mine = cache.RunFolder("bed", sweep=swept.append)
        assert (root / "run" / name).exists()
        os.kill(owner.pid, signal.SIGKILL)
    another = cache.RunFolder("bed", sweep=swept.append)
    assert swept == [name]
    assert not (root / "run" / name).exists()
    for folder in (mine, another):
        assert folder.path.exists()
        folder.remove()
        assert not folder.path.exists()


def test_a_machines_disk_is_in_memory_where_there_is_enough_and_nobody_else_can_write(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shm = tmp_path / "shm"
    monkeypatch.setattr(cache, "IN_MEMORY", shm)
    monkeypatch.setattr(cache, "SPARE", 1 << 60)
    assert cache.fast_root() == root
    monkeypatch.setattr(cache, "SPARE", 0)
    for _ in range(2):
        assert cache.fast_root() == shm
    shm.chmod(0o777)
    assert cache.fast_root() == root
    shm.rmdir()
    shm.symlink_to(tmp_path)
    assert cache.fast_root() == root
