"""What the block device of a file system is made of, down to the disks: partitions, LVM, RAID and encryption, loop devices, ZFS volumes.

From sysfs (Documentation/ABI/stable/sysfs-block): world-readable, and no device is opened.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

# By the kernel's name: drivers/block, and zvol_os.c of OpenZFS.
_KINDS = {"zd": "zvol", "nbd": "network", "rbd": "network", "drbd": "network", "ram": "ram", "zram": "ram"}
_NAME = re.compile(r"([a-z]+)\d+")
_LOCAL = {"pcie", "apple-nvme", "loop"}  # transports of NVMe that are no network


@dataclass(frozen=True)
class BlockDevice:
    """A device that a file system stands on. `kind` is "zvol", "network", "ram", "loop" or "" (a disk, or what is made of devices below).

    Of a loop device, `file` is what it shows, and `fstype` the type of the file system that has it; "" where that is a device itself.
    """

    name: str
    kind: str = ""
    file: str = ""
    fstype: str = ""


@dataclass(frozen=True)
class Holder:
    """The file system that has a file: its type, and its device as mountinfo has it (MAJOR:MINOR, and the source)."""

    fstype: str
    number: str
    source: str


def read_block_devices(holder: Holder, holder_of: Callable[[Path], Holder | None], root: Path = Path("/")) -> tuple[BlockDevice, ...]:
    """All devices below a file system, the topmost first; none where it has no device, or sysfs does not show it.

    holder_of: says which file system has the file at a path, for the file behind a loop device.
    """
    found: dict[str, BlockDevice] = {}
    waiting = [*_device_of(holder, root)]
    while waiting:
        folder = _whole_disk(waiting.pop(0))
        if folder.name in found:
            continue
        file = _loop_file(folder)
        device = [*_named(file, root)] if file.startswith("/dev/") else []  # of /dev, but for files in /dev/shm
        behind = holder_of(Path(file)) if file and not device else None
        found[folder.name] = BlockDevice(folder.name, "loop" if file else _kind(folder), file, behind.fstype if behind else "")
        waiting += device
        if behind:
            waiting += _device_of(behind, root)
        with suppress(OSError):
            waiting += sorted(Path(os.path.realpath(below)) for below in (folder / "slaves").iterdir())
    return tuple(found.values())


def _device_of(holder: Holder, root: Path) -> Iterator[Path]:
    """The folder in sysfs of the device of a file system. The number of btrfs is no device's: there the source tells."""
    numbered = root / "sys/dev/block" / holder.number
    if numbered.exists():
        yield Path(os.path.realpath(numbered))
    elif holder.source.startswith("/dev/"):
        yield from _named(holder.source, root)


def _named(path: str, root: Path) -> Iterator[Path]:
    """The folder in sysfs of a device by its path in /dev, which may be a link."""
    named = root / "sys/class/block" / Path(os.path.realpath(f"{root}/{path}")).name
    if named.exists():
        yield Path(os.path.realpath(named))


def _whole_disk(folder: Path) -> Path:
    return folder.parent if (folder / "partition").exists() else folder


def _loop_file(folder: Path) -> str:
    """The file that a loop device shows, "" of any other device."""
    try:
        text = (folder / "loop/backing_file").read_text(errors="surrogateescape")
    except OSError:
        return ""
    return text.removesuffix("\n").removesuffix(" (deleted)")


def _kind(folder: Path) -> str:
    match = _NAME.fullmatch(folder.name)
    if match and (kind := _KINDS.get(match[1])):
        return kind
    device = Path(os.path.realpath(folder / "device"))
    if any(re.fullmatch(r"session\d+", part) for part in device.parts):  # drivers/scsi/scsi_transport_iscsi.c
        return "network"
    for file in (device / "transport", *device.glob("nvme*/transport")):  # of the controller, or of each of a subsystem's
        with suppress(OSError):
            if file.read_text().strip() not in _LOCAL:
                return "network"
    return ""
