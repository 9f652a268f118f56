"""Facts about the disks of the machine, from sysfs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from vllm_safe.common.kernfs import read_kernel_file
from vllm_safe.host.block_devices import Holder, read_block_devices
from vllm_safe.host.host_facts import Host, SwapArea


@dataclass(frozen=True)
class Disk:
    """A whole disk, by its kernel's name. scheduler: the I/O scheduler in use: "mq-deadline", "bfq", "kyber", "none"."""

    name: str
    rotational: bool = False
    scheduler: str = ""

    def __str__(self) -> str:
        kind = "a hard disk" if self.rotational else "an NVMe SSD" if self.name.startswith("nvme") else "an SSD"
        return f"{self.name}, {kind}"


def read_disks(root: Path = Path("/")) -> dict[str, Disk]:
    """Return the disks by name: not loop devices, LVM or RAID, which are made of them."""
    found = {}
    for folder in sorted((root / "sys/block").glob("*")):
        rotational = read_kernel_file(str(folder / "queue/rotational")).strip()
        if (folder / "device").exists() and rotational in {"0", "1"}:
            text = read_kernel_file(str(folder / "queue/scheduler"))
            found[folder.name] = Disk(folder.name, rotational == "1", text.partition("[")[2].partition("]")[0] or text.strip())
    return found


def disks_of(host: Host, path: Path, disks: Mapping[str, Disk]) -> tuple[Disk, ...]:
    """Return the disks that hold the file system with `path`; () where none is known: a network, RAM, a container."""
    mount = host.mount_of(path)
    return tuple(disks[device.name] for device in mount.devices if device.name in disks) if mount else ()


def read_swap_disks(host: Host, areas: Iterable[SwapArea], disks: Mapping[str, Disk], root: Path = Path("/")) -> tuple[Disk, ...]:
    """Return the disks that the kernel swaps to."""
    found = dict[str, Disk]()
    for area in areas:
        if area.kind == "file":
            found |= {disk.name: disk for disk in disks_of(host, Path(area.path), disks)}
        else:
            below = read_block_devices(Holder("swap", "none", area.path), lambda _: None, root)
            found |= {device.name: disks[device.name] for device in below if device.name in disks}
    return tuple(found.values())
