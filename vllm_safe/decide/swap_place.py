"""Where a swapfile may be: what each kind of file system makes of one, and how much room it leaves."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from types import MappingProxyType

from vllm_safe.errors import Failure
from vllm_safe.host.block_devices import BlockDevice
from vllm_safe.host.facts import Host, Mount
from vllm_safe.host.swapfile import SwapFacts
from vllm_safe.sizes import GIB, MIB, Amount, format_exact, format_size

MINIMUM = MIB  # mkswap wants 10 pages; smaller files are mistakes


@dataclass(frozen=True)
class Way:
    """How a swapfile is made on a kind of file system."""

    nocow: bool = False
    write: bool = False  # the kernel takes no allocated file as swap there, or cannot allocate


WAYS = MappingProxyType(
    {
        "ext4": Way(),
        "xfs": Way(),
        "btrfs": Way(nocow=True),
        "ext3": Way(write=True),
        "ext2": Way(write=True),
        "f2fs": Way(write=True),
    }
)

_DEADLOCK = "its driver needs memory to free memory, and the machine stands still when RAM is full"
_NETWORK = "a network needs memory to write, and the machine stands still when RAM is full"
_RAM = "it is in RAM itself"
_IMAGE = "it cannot be written to"
_REASONS = MappingProxyType(
    dict.fromkeys(("ntfs", "ntfs3", "fuse", "fuseblk", "zfs", "ecryptfs"), _DEADLOCK)
    | dict.fromkeys(("nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "afs", "ocfs2", "gfs2", "virtiofs"), _NETWORK)
    | dict.fromkeys(("tmpfs", "ramfs", "devtmpfs", "hugetlbfs", "rootfs"), _RAM)
    | dict.fromkeys(("squashfs", "iso9660", "erofs", "udf", "cramfs"), _IMAGE)
    | dict.fromkeys(("vfat", "msdos", "exfat"), "it knows no owners and no permissions: everybody could read what is swapped out")
    | {"overlay": "the kernel refuses it (a container or a live system)"}
)
_DEVICES = MappingProxyType(
    {"zvol": ("a ZFS volume", _DEADLOCK), "network": ("a disk behind a network", _NETWORK), "ram": ("a RAM disk", _RAM)}
)


def way_for(host: Host, facts: SwapFacts) -> Way:
    """How the swapfile is made at its configured place. Raises Failure where it cannot be."""
    mount = host.mount_of(facts.path)
    fstype = mount.fstype if mount else "unknown"
    if not mount or fstype not in WAYS:
        raise Failure(f"no swapfile can be made at {facts.path}, on {fstype}: {_reason(fstype)}", hint=_elsewhere(host))
    for device in mount.devices:
        if reason := _why_not_on(device):
            raise Failure(f"no swapfile can be made at {facts.path}: {mount.point} is on {reason}", hint=_elsewhere(host))
    if "ro" in mount.options:
        raise Failure(f"no swapfile can be made at {facts.path}: {mount.point} is mounted read-only", hint=_elsewhere(host))
    if facts.folder.problem:
        raise Failure(f"no swapfile can be made at {facts.path}: {facts.folder.problem}", hint=facts.folder.way_out)
    if several := facts.folder.profiles - {"single"}:
        message = (
            f"no swapfile can be made at {facts.path}: this btrfs stores data as {', '.join(sorted(several))}, and the kernel wants single"
        )
        raise Failure(message, hint=_elsewhere(host))
    return WAYS[fstype]


def _reason(fstype: str) -> str:
    return _REASONS.get(fstype.partition(".")[0], "nobody has tried it")


def _why_not_on(device: BlockDevice) -> str:
    """Why no file system on this device can have a swapfile, or ""."""
    if device.kind in _DEVICES:
        what, reason = _DEVICES[device.kind]
        return f"{device.name}, {what}: {reason}"
    if device.fstype and device.fstype not in WAYS:
        return f"{device.name}, a loop device of {device.file}, on {device.fstype}: {_reason(device.fstype)}"
    return ""


def lack_of_room(size: int, keep_free: Amount, facts: SwapFacts, *, freed: int) -> Failure | None:
    """Why `size` bytes do not fit beside what must stay free, when `freed` bytes have been given back before; None if they do."""
    keep = keep_free.of(facts.folder.total)
    free = facts.folder.free + freed
    if free - size >= keep:
        return None
    unit = GIB if free - keep >= GIB else MIB
    most = max(0, (free - keep) // unit * unit)
    ways = ["make room", "set `swap.file` to another disk"]
    if most >= MINIMUM:
        ways.insert(0, f"set `swap.size` to {format_exact(most)} or less")
    message = (
        f"no room for {format_size(size)} at {facts.path}: {format_size(free)} are free, "
        f"and {format_size(keep)} must stay free (swap.keep_free: {keep_free})"
    )
    return Failure(message, hint=_sentence(ways))


def _elsewhere(host: Host) -> str:
    points = dict.fromkeys(mount.point for mount in host.mounts if _suits(mount))
    here = f" (here: {', '.join(list(points)[:4])})" if points else ""
    return _sentence([f"set `swap.file` to a path on ext4, xfs or btrfs{here}", "`swap.size: none` to use the swap that is on"])


def _suits(mount: Mount) -> bool:
    if any(map(_why_not_on, mount.devices)):
        return False
    return mount.fstype in WAYS and "ro" not in mount.options and not mount.point.startswith(("/boot", "/run", "/var/lib/docker", "/snap"))


def _sentence(ways: Iterable[str]) -> str:
    text = ", or ".join(ways)
    return f"{text[0].upper()}{text[1:]}."
