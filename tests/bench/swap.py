"""The creation of 128 GiB of swap on ext4, compared with dphys-swapfile's way, per GiB on the same disk. The swap is not activated."""

from __future__ import annotations

import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.bench.row import Row
from vllm_safe.common.sizes import GIB, MIB
from vllm_safe.swap.swapfile_steps import MakeSwapfile

ROUNDS = 3
OURS, THEIRS = 128, 2  # GiB; writing takes real space and time, allocation does not
DISK = "140G"  # sparse


def measure() -> list[Row]:
    """Time both ways in turn, in an ext4 file system of their own in a sparse file. Needs root and a loop device."""
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="vllm-safe-bench-") as folder:
        image, disk = Path(folder, "image"), Path(folder, "disk")
        disk.mkdir()
        _run("truncate", "--size", DISK, image)
        _run("mkfs.ext4", "-q", image)
        _run("mount", "-o", "loop", image, disk)
        try:
            pairs = [(_seconds(_make, disk / "ours") / OURS, _seconds(_dphys, disk / "theirs") / THEIRS) for _ in range(ROUNDS)]
        finally:
            _run("umount", disk)
    mine, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
    beside = f"{mine * 1e3:.1f} ms against {theirs * 1e3:.0f} ms for each GiB, median of {ROUNDS} pairs"
    return [Row(f"{OURS} GiB of swap on ext4, to dphys-swapfile", mine / theirs, 0.1, "times", beside)]


def _make(path: Path) -> None:
    MakeSwapfile(path, OURS * GIB).run()


def _dphys(path: Path) -> None:
    """Run the commands of dphys-swapfile 20100506-7.1. It does not wait for the disk, nor does this benchmark wait for it."""
    _run("touch", path)
    _run("dd", "if=/dev/zero", f"of={path}", f"bs={MIB}", f"count={THEIRS * 1024}", "status=none")
    _run("chmod", "600", path)
    _run("mkswap", path)


def _seconds(way: Callable[[Path], None], path: Path) -> float:
    start = time.perf_counter()
    way(path)
    spent = time.perf_counter() - start
    path.unlink()
    return spent


def _run(*command: str | Path) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
