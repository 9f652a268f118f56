"""Facts about the machine, read from /proc and /sys below a root folder, which tests replace."""

from __future__ import annotations

import os
import re
import socket
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from vllm_safe.common.kernfs import parse_meminfo, read_kernel_file
from vllm_safe.host.block_devices import BlockDevice, Holder, read_block_devices
from vllm_safe.tunables.tunable_facts import read_tunables

_LISTEN = "0A"  # TCP_LISTEN in the kernel's net/tcp_states.h


@dataclass(frozen=True)
class SwapArea:
    """One line of /proc/swaps. Sizes in bytes; `kind` is "file" or "partition"."""

    path: str
    kind: str
    size: int
    used: int


@dataclass(frozen=True)
class Mount:
    """One line of /proc/self/mountinfo. `options`: those of the mount and of its file system. `source`: the device."""

    point: str
    fstype: str
    source: str
    options: tuple[str, ...]
    devices: tuple[BlockDevice, ...] = ()  # below it, the topmost first


@dataclass(frozen=True)
class Host:
    """All facts about the machine that decisions depend on. Sizes are in bytes."""

    memory: int = 0  # MemTotal
    memory_available: int = 0  # MemAvailable
    kept_free: int = 0  # with less free memory, the kernel reclaims from every cgroup what is not protected
    swaps: tuple[SwapArea, ...] = ()
    mounts: tuple[Mount, ...] = ()
    gpus: int = 0  # number of NVIDIA cards that the driver lists
    cpus: int = 1
    kernel: str = ""
    name: str = ""  # the host name
    listening: frozenset[tuple[str, int]] = frozenset()  # (address, port) of every listening TCP socket
    cgroup2: bool = False  # the unified hierarchy is mounted at /sys/fs/cgroup
    controllers: frozenset[str] = frozenset()  # of the root cgroup
    pressure: bool = False  # PSI is compiled in and on
    tunables: Mapping[str, str] = field(default_factory=dict)  # see read_tunables

    @property
    def swap(self) -> int:
        """The total size in bytes of all swap that is on."""
        return sum(swap.size for swap in self.swaps)

    @property
    def swap_used(self) -> int:
        """The number of bytes that are swapped out now."""
        return sum(swap.used for swap in self.swaps)

    def mount_of(self, path: Path) -> Mount | None:
        """Return the mount that contains `path`, which need not exist.

        It is the one with the longest mount point; of several with the same mount point, the one that was mounted last.
        """
        return _mount_of(self.mounts, path)


def _mount_of(mounts: Iterable[Mount], path: Path) -> Mount | None:
    best: Mount | None = None
    for mount in mounts:
        if path.is_relative_to(mount.point) and (best is None or len(mount.point) >= len(best.point)):
            best = mount
    return best


def read_host(root: Path = Path("/"), *, behind: Path | None = None) -> Host:
    """Read the facts below `root` ("/" for this machine). A fact whose file is missing has its empty value.

    behind: a path whose automount is triggered first. Until its folder is opened, it is an `autofs`, which hides the real file system.
    """
    if behind:
        with suppress(OSError):
            os.close(os.open(behind.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    memory = parse_meminfo(_text(root / "proc/meminfo"))  # psutil's virtual_memory fails where one of its many lines is missing
    return Host(
        memory=memory.get("MemTotal", 0),
        memory_available=memory.get("MemAvailable", 0),
        kept_free=_kept_free(root),
        swaps=read_swaps(root),
        mounts=_mounts(root),
        gpus=_count(root / "proc/driver/nvidia/gpus"),
        cpus=len(re.findall(r"^processor\s*:", _text(root / "proc/cpuinfo"), re.MULTILINE)) or 1,  # psutil.cpu_count knows no root
        kernel=_text(root / "proc/sys/kernel/osrelease").strip(),
        name=_text(root / "proc/sys/kernel/hostname").strip(),
        listening=_listening(root),
        cgroup2=(root / "sys/fs/cgroup/cgroup.controllers").exists(),
        controllers=frozenset(_text(root / "sys/fs/cgroup/cgroup.controllers").split()),
        pressure=bool(_text(root / "proc/pressure/memory")),
        tunables=read_tunables(root),
    )


def _text(path: Path) -> str:
    return read_kernel_file(str(path), errors="surrogateescape")


def _count(folder: Path) -> int:
    try:
        return sum(1 for _ in folder.iterdir())
    except OSError:
        return 0


def _kept_free(root: Path) -> int:
    """Return the sum of the high watermarks of all zones (proc_zoneinfo(5)) in bytes.

    With less free memory the kernel swaps out, and a login may have to wait.
    """
    pages = re.findall(r"^ +high +(\d+)$", _text(root / "proc/zoneinfo"), re.MULTILINE)
    return sum(map(int, pages)) * os.sysconf("SC_PAGE_SIZE")


def _unescape(text: str) -> str:
    r"""Decode a path. The kernel writes space, tab, newline and backslash in it as \040 \011 \012 \134."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def read_swaps(root: Path = Path("/")) -> tuple[SwapArea, ...]:
    """Read only the swap areas that are on, for a step that checks its result. psutil has only their sum."""
    rows = (line.split() for line in _text(root / "proc/swaps").splitlines()[1:])
    return tuple(SwapArea(_unescape(row[0]), row[1], int(row[2]) * 1024, int(row[3]) * 1024) for row in rows if len(row) >= 4)


def _mounts(root: Path) -> tuple[Mount, ...]:
    """Return the mounts as the kernel has them: psutil's disk_partitions goes by /etc/mtab where that is a file, however old."""
    mounts, numbers = list[Mount](), dict[Mount, str]()
    for line in _text(root / "proc/self/mountinfo").splitlines():
        left, _, right = line.partition(" - ")
        row, tail = left.split(), right.split()
        if len(row) >= 6 and len(tail) >= 3:
            options = tuple(dict.fromkeys(row[5].split(",") + tail[2].split(",")))
            mounts.append(Mount(_unescape(row[4]), tail[0], _unescape(tail[1]), options))
            numbers[mounts[-1]] = row[2]

    def holder(mount: Mount) -> Holder:
        return Holder(mount.fstype, numbers[mount], mount.source)

    def holder_of(path: Path) -> Holder | None:
        mount = _mount_of(mounts, path)
        return holder(mount) if mount else None

    return tuple(replace(mount, devices=read_block_devices(holder(mount), holder_of, root)) for mount in mounts)


def _listening(root: Path) -> frozenset[tuple[str, int]]:
    """Return the listening addresses and ports (proc_net_tcp in the kernel's documentation). A line in another format is skipped.

    psutil's net_connections would also look at each descriptor of each process, to find the owner of each socket. That takes 0.1 s.
    """
    found = set[tuple[str, int]]()
    for family, name in ((socket.AF_INET, "tcp"), (socket.AF_INET6, "tcp6")):
        for line in _text(root / "proc/net" / name).splitlines():
            row = line.split()
            if len(row) > 3 and row[3] == _LISTEN:
                address, _, port = row[1].partition(":")
                with suppress(ValueError):
                    # The kernel prints each 32 bits of an address as a number in this machine's byte order.
                    words = (int(address[at : at + 8], 16).to_bytes(4, sys.byteorder) for at in range(0, len(address), 8))
                    found.add((socket.inet_ntop(family, b"".join(words)), int(port, 16)))
    return frozenset(found)
