"""The cache, the only folder that outlives a run, with trees, apt archives and wheels; and the folders of running beds.

A later run removes the folders of beds whose owner is gone.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

ROOT = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vllm-safe/beds"
MONTH = 30 * 86400.0  # seconds
IN_MEMORY = Path("/dev/shm/vllm-safe-beds")  # noqa: S108 - used only if it belongs to root
SPARE = 16 << 30  # bytes of memory that a host must have free before a machine's disk is kept there


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on the file `path`, which is created if it is missing. Wait for another holder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        os.utime(path)
        yield


def cached(kind: str, key: str, make: Callable[[Path], None]) -> Path:
    """Return the folder KIND/KEY of the cache. If it is missing, `make` fills it.

    `make` gets a folder to fill, which becomes KIND/KEY by one rename after `make` has returned, so an interrupted build leaves nothing
    that looks complete. Two processes that want the same folder build it once. A folder that was not used for a month is removed when
    another one is made.
    """
    target = ROOT / kind / key
    with locked(ROOT / kind / f".{key}.lock"):
        if not target.exists():
            partial = ROOT / kind / f".{key}.partial"
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            make(partial)
            partial.rename(target)
            _forget_unused(ROOT / kind)
    return target


def _forget_unused(kind: Path) -> None:
    """Remove folders that no process has requested in a month. Each request touches the lock."""
    for lock in kind.glob(".*.lock"):
        if lock.stat().st_mtime < time.time() - MONTH:
            shutil.rmtree(kind / lock.name.removeprefix(".").removesuffix(".lock"), ignore_errors=True)
            lock.unlink()


def fast_root() -> Path:
    """Return the folder for the disks of machines: in memory if the host has plenty, so that the host's disk does not affect a test."""
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    if int(fields["MemAvailable"].split()[0]) << 10 < SPARE:
        return ROOT
    with suppress(FileExistsError):
        IN_MEMORY.mkdir(mode=0o700)
    owner = IN_MEMORY.lstat()
    return IN_MEMORY if (owner.st_uid, owner.st_mode) == (os.geteuid(), stat.S_IFDIR | 0o700) else ROOT


class RunFolder:
    """The folder of one running bed. Its lock shows a later run whether its owner is still alive, however it died."""

    def __init__(self, kind: str, sweep: Callable[[str], None] = lambda _: None, *, root: Path | None = None) -> None:
        """Create a folder ROOT/run/KIND-xxxx, after removing those of dead owners.

        `sweep` gets the name of each of these, to remove what else its owner left.
        """
        run = (root or ROOT) / "run"
        with locked(run / ".lock"):
            for stale in run.glob(f"{kind}-*"):
                if not _owned(stale):
                    sweep(stale.name)
                    shutil.rmtree(stale, ignore_errors=True)
            self.path = Path(tempfile.mkdtemp(prefix=f"{kind}-", dir=run))
            self._lock: IO[str] = (self.path / ".lock").open("w")
            fcntl.flock(self._lock, fcntl.LOCK_EX)
        self.path.chmod(0o755)

    def remove(self) -> None:
        """Remove the folder and everything in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.close()


def _owned(folder: Path) -> bool:
    with suppress(OSError), (folder / ".lock").open("r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
