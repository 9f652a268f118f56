"""A disk that serves so many requests a second, for a container at full speed: an ext4 image behind QEMU's throttle, mounted read-only.

The processors are real and only the disk is slow, unlike in an emulated machine.
"""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import NamedTuple, Self

from tests.beds import cache
from tests.beds.machine import TIED, BedError

KIND = "slow-disk"
READ_AHEAD = 128  # KiB: Linux's default
SECTOR = 512


class Served(NamedTuple):
    """What a disk has served so far: requests, and bytes."""

    requests: int
    read: int

    def since(self, before: Served) -> Served:
        """Return what it has served since."""
        return Served(self.requests - before.requests, self.read - before.read)


class SlowDisk:
    """A file system with a copy of `tree`. Use it as a context manager; the bed that uses it has to be gone before."""

    def __init__(self, tree: Path, *, iops: int, bytes_per_second: int) -> None:
        image = cache.cached("disks", tree.name, lambda folder: _make_image(tree, folder / "image")) / "image"
        self._folder = cache.RunFolder(KIND, sweep=_unmount)
        self.mount = self._folder.path / "mount"
        self._exported = self._folder.path / "exported"
        self._undo: list[list[str]] = []
        self._daemon: subprocess.Popen[bytes] | None = None
        try:
            self.mount.mkdir()
            self._exported.touch()
            self._export(image, iops, bytes_per_second)
            self._attach()
        except BaseException:
            self.stop()
            raise

    def _export(self, image: Path, iops: int, bytes_per_second: int) -> None:
        command = [
            *(*TIED, "qemu-storage-daemon"),
            *("--object", f"throttle-group,id=limits,x-iops-total={iops},x-bps-total={bytes_per_second}"),
            *("--blockdev", f"driver=file,node-name=file,filename={image},cache.direct=on,read-only=on,aio=threads"),
            *("--blockdev", "driver=throttle,node-name=slow,file=file,throttle-group=limits,read-only=on"),
            *("--export", f"type=fuse,id=export,node-name=slow,mountpoint={self._exported},growable=off,writable=off"),
        ]
        with (self._folder.path / "log").open("wb") as log:
            self._daemon = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        self._undo.append(["umount", "--lazy", str(self._exported)])
        end = time.monotonic() + 30
        while self._exported.stat().st_size == 0:  # the file of the export replaces the empty one
            if self._daemon.poll() is not None or time.monotonic() > end:
                raise BedError(f"no slow disk: {(self._folder.path / 'log').read_text(errors='replace')}")
            time.sleep(0.05)

    def _attach(self) -> None:
        device = _run("losetup", "--read-only", "--find", "--show", "--direct-io=on", str(self._exported)).strip()
        self._undo.append(["losetup", "--detach", device])
        self._block = Path("/sys/block", Path(device).name)
        (self._block / "queue/scheduler").write_text("mq-deadline")  # as Debian has it for a hard disk
        (self._block / "queue/read_ahead_kb").write_text(str(READ_AHEAD))
        _run("mount", "-o", "ro", device, str(self.mount))
        self._undo.append(["umount", str(self.mount)])

    @property
    def served(self) -> Served:
        """What the disk has served so far."""
        words = (self._block / "stat").read_text().split()
        return Served(int(words[0]), int(words[2]) * SECTOR)

    def forget(self) -> None:
        """Drop the page cache, of the whole host: the disk is as cold as after a boot."""
        Path("/proc/sys/vm/drop_caches").write_text("3")

    def stop(self) -> None:
        """Take it down. Can be called twice."""
        while len(self._undo) > 1:
            subprocess.run(self._undo.pop(), check=False)
        if self._daemon:
            self._daemon.kill()  # it writes nothing; asked to end, it may wait for one more request
            self._daemon.wait()
        while self._undo:
            subprocess.run(self._undo.pop(), check=False, stderr=subprocess.DEVNULL)
        self._folder.remove()

    def __enter__(self) -> Self:
        """Return the disk."""
        return self

    def __exit__(self, *_: object) -> None:
        """Take it down."""
        self.stop()


def _unmount(name: str) -> None:
    """Unmount what a disk whose owner was killed has left; its loop device goes with the last mount."""
    for part in ("mount", "exported"):
        subprocess.run(["umount", "--lazy", "--detach-loop", str(cache.ROOT / "run" / name / part)], check=False, stderr=subprocess.DEVNULL)


def _make_image(tree: Path, image: Path) -> None:
    """Copy the tree into a new file system through the kernel, which allocates blocks as it does on a real disk."""
    _run("truncate", "--size=6G", str(image))
    _run("mkfs.ext4", "-q", str(image))
    folder = image.with_name("mount")
    folder.mkdir()
    _run("mount", "-o", "loop", str(image), str(folder))
    try:
        _run("cp", "--archive", f"{tree}/.", str(folder))
    finally:
        _run("umount", str(folder))
    folder.rmdir()


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
