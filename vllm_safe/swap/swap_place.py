"""Suitable places for a swapfile: which file systems support one and how, and how much space there is."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from types import MappingProxyType

from vllm_safe.common.errors import Failure
from vllm_safe.common.sizes import GIB, MIB, Amount, format_exact, format_size
from vllm_safe.host.block_devices import BlockDevice
from vllm_safe.host.host_facts import Host, Mount
from vllm_safe.swap.swapfile_facts import SwapFacts

MINIMUM = MIB  # mkswap needs 10 pages; a file below this size is surely a mistake


@dataclass(frozen=True)
class SwapfileMethod:
    """How a swapfile is made on a type of file system."""

    nocow: bool = False
    write: bool = False  # the kernel does not swap to allocated files there, or cannot allocate them


WAYS = MappingProxyType(
    {
        "ext4": SwapfileMethod(),
        "xfs": SwapfileMethod(),
        "btrfs": SwapfileMethod(nocow=True),
        "ext3": SwapfileMethod(write=True),
        "ext2": SwapfileMethod(write=True),
        "f2fs": SwapfileMethod(write=True),
    }
)

_DEADLOCK = "its driver needs memory to free memory, so the machine would hang when RAM is full"
_NETWORK = "network I/O needs memory to free memory, so the machine would hang when RAM is full"
_RAM = "it is stored in RAM itself"
_IMAGE = "it is read-only"
_REASONS = MappingProxyType(
    dict.fromkeys(("ntfs", "ntfs3", "fuse", "fuseblk", "zfs", "ecryptfs"), _DEADLOCK)
    | dict.fromkeys(("nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "afs", "ocfs2", "gfs2", "virtiofs"), _NETWORK)
    | dict.fromkeys(("tmpfs", "ramfs", "devtmpfs", "hugetlbfs", "rootfs"), _RAM)
    | dict.fromkeys(("squashfs", "iso9660", "erofs", "udf", "cramfs"), _IMAGE)
    | dict.fromkeys(("vfat", "msdos", "exfat"), "it has no owners and permissions, so any user could read swapped out memory")
    | {"overlay": "the kernel refuses it (a container or a live system)"}
)
_DEVICES = MappingProxyType(
    {"zvol": ("a ZFS volume", _DEADLOCK), "network": ("a disk on the network", _NETWORK), "ram": ("a RAM disk", _RAM)}
)


def swapfile_method(host: Host, facts: SwapFacts) -> SwapfileMethod:
    """Decide how the swapfile is made at its configured path. Raises Failure if it cannot be made there."""
    mount = host.mount_of(facts.path)
    fstype = mount.fstype if mount else "unknown"
    if not mount or fstype not in WAYS:
        raise Failure(f"cannot create a swapfile at {facts.path}, on {fstype}: {_reason(fstype)}", hint=_elsewhere(host))
    for device in mount.devices:
        if reason := _why_not_on(device):
            raise Failure(f"cannot create a swapfile at {facts.path}: {mount.point} is on {reason}", hint=_elsewhere(host))
    if "ro" in mount.options:
        raise Failure(f"cannot create a swapfile at {facts.path}: {mount.point} is mounted read-only", hint=_elsewhere(host))
    if facts.folder.problem:
        raise Failure(f"cannot create a swapfile at {facts.path}: {facts.folder.problem}", hint=facts.folder.way_out)
    if several := facts.folder.profiles - {"single"}:
        profiles = ", ".join(sorted(several))
        message = f"cannot create a swapfile at {facts.path}: this btrfs stores data as {profiles}, but the kernel requires single"
        raise Failure(message, hint=_elsewhere(host))
    return WAYS[fstype]


def _reason(fstype: str) -> str:
    return _REASONS.get(fstype.partition(".")[0], "this file system is untested")


def _why_not_on(device: BlockDevice) -> str:
    """Return why no file system on this device can contain a swapfile, or ""."""
    if device.kind in _DEVICES:
        what, reason = _DEVICES[device.kind]
        return f"{device.name}, {what}: {reason}"
    if device.fstype and device.fstype not in WAYS:
        return f"{device.name}, a loop device of {device.file}, on {device.fstype}: {_reason(device.fstype)}"
    return ""


def lack_of_room(size: int, keep_free: Amount, facts: SwapFacts, *, freed: int) -> Failure | None:
    """Return the failure if `size` bytes do not fit while `keep_free` stays free; None if they do. freed: bytes that are freed before."""
    keep = keep_free.of(facts.folder.total)
    free = facts.folder.free + freed
    if free - size >= keep:
        return None
    unit = GIB if free - keep >= GIB else MIB
    most = max(0, (free - keep) // unit * unit)
    ways = ["free some space", "set `swap.file` to a path on another disk"]
    if most >= MINIMUM:
        ways.insert(0, f"set `swap.size` to {format_exact(most)} or less")
    message = (
        f"not enough disk space for {format_size(size)} at {facts.path}: {format_size(free)} are free, "
        f"and {format_size(keep)} must stay free (swap.keep_free: {keep_free})"
    )
    return Failure(message, hint=_sentence(ways))


def _elsewhere(host: Host) -> str:
    points = dict.fromkeys(mount.point for mount in host.mounts if _suits(mount))
    here = f" (here: {', '.join(list(points)[:4])})" if points else ""
    return _sentence([f"set `swap.file` to a path on ext4, xfs or btrfs{here}", "set `swap.size: none` to use the swap that is active"])


def _suits(mount: Mount) -> bool:
    if any(map(_why_not_on, mount.devices)):
        return False
    return mount.fstype in WAYS and "ro" not in mount.options and not mount.point.startswith(("/boot", "/run", "/var/lib/docker", "/snap"))


def _sentence(ways: Iterable[str]) -> str:
    text = ", or ".join(ways)
    return f"{text[0].upper()}{text[1:]}."
