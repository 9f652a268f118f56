"""The block devices below a file system, down to the disks: partitions, LVM, RAID and encryption, loop devices, ZFS volumes.

They are read from sysfs (Documentation/ABI/stable/sysfs-block): every user can read it, and no device is opened.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from vllm_safe.common.kernfs import read_kernel_file

# By the kernel's name of the device: drivers/block, and zvol_os.c of OpenZFS.
_KINDS = {"zd": "zvol", "nbd": "network", "rbd": "network", "drbd": "network", "ram": "ram", "zram": "ram"}
_NAME = re.compile(r"([a-z]+)\d+")
_LOCAL = {"pcie", "apple-nvme", "loop"}  # transports of NVMe that use no network


@dataclass(frozen=True)
class BlockDevice:
    """A device below a file system. `kind` is "zvol", "network", "ram", "loop", or "" for a disk and for a device made of others.

    Of a loop device, `file` is its backing file, and `fstype` the type of the file system that contains it; "" for a backing device.
    """

    name: str
    kind: str = ""
    file: str = ""
    fstype: str = ""


@dataclass(frozen=True)
class Holder:
    """The file system that contains a file: its type, and its device as in mountinfo (MAJOR:MINOR, and the source)."""

    fstype: str
    number: str
    source: str


def read_block_devices(holder: Holder, holder_of: Callable[[Path], Holder | None], root: Path = Path("/")) -> tuple[BlockDevice, ...]:
    """Return all devices below a file system, the topmost first; () if it has no device, or sysfs does not show the device.

    holder_of: returns the file system that contains the file at a path, for the backing file of a loop device.
    """
    found: dict[str, BlockDevice] = {}
    waiting = [*_device_of(holder, root)]
    while waiting:
        folder = _whole_disk(waiting.pop(0))
        if folder.name in found:
            continue
        file = _loop_file(folder)
        device = [*_named(file, root)] if file.startswith("/dev/") else []  # a file in /dev/shm is not a device
        behind = holder_of(Path(file)) if file and not device else None
        found[folder.name] = BlockDevice(folder.name, "loop" if file else _kind(folder), file, behind.fstype if behind else "")
        waiting += device
        if behind:
            waiting += _device_of(behind, root)
        with suppress(OSError):
            waiting += sorted(Path(os.path.realpath(below)) for below in (folder / "slaves").iterdir())
    return tuple(found.values())


def _device_of(holder: Holder, root: Path) -> Iterator[Path]:
    """Return the folder in sysfs of the device of a file system. The number of btrfs is not that of a device: there, the source is used."""
    numbered = root / "sys/dev/block" / holder.number
    if numbered.exists():
        yield Path(os.path.realpath(numbered))
    elif holder.source.startswith("/dev/"):
        yield from _named(holder.source, root)


def _named(path: str, root: Path) -> Iterator[Path]:
    """Return the folder in sysfs of a device by its path in /dev, which may be a link."""
    named = root / "sys/class/block" / Path(os.path.realpath(f"{root}/{path}")).name
    if named.exists():
        yield Path(os.path.realpath(named))


def _whole_disk(folder: Path) -> Path:
    return folder.parent if (folder / "partition").exists() else folder


def _loop_file(folder: Path) -> str:
    """Return the backing file of a loop device, "" for any other device."""
    text = read_kernel_file(str(folder / "loop/backing_file"), errors="surrogateescape")
    return text.removesuffix("\n").removesuffix(" (deleted)")


def _kind(folder: Path) -> str:
    match = _NAME.fullmatch(folder.name)
    if match and (kind := _KINDS.get(match[1])):
        return kind
    device = Path(os.path.realpath(folder / "device"))
    if any(re.fullmatch(r"session\d+", part) for part in device.parts):  # drivers/scsi/scsi_transport_iscsi.c
        return "network"
    files = (device / "transport", *device.glob("nvme*/transport"))  # of the controller, or of each controller of a subsystem
    transports = {read_kernel_file(str(file)).strip() for file in files} - {""}
    return "" if transports <= _LOCAL else "network"
