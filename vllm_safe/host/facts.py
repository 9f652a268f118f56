"""Facts about the machine, read from /proc, /sys and /etc below a root that tests may replace."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from vllm_safe.host.block_devices import BlockDevice, Holder, read_block_devices
from vllm_safe.host.tunables import read_tunables


@dataclass(frozen=True)
class Swap:
    """One line of /proc/swaps. Sizes in bytes; `kind` is "file" or "partition"."""

    path: str
    kind: str
    size: int
    used: int


@dataclass(frozen=True)
class Mount:
    """One line of /proc/self/mountinfo. `options` are the file system's, `source` the device."""

    point: str
    fstype: str
    source: str
    options: tuple[str, ...]
    devices: tuple[BlockDevice, ...] = ()  # that it stands on, the topmost first


@dataclass(frozen=True)
class Host:
    """Everything that a decision may depend on. Sizes in bytes."""

    memory: int = 0  # MemTotal
    memory_available: int = 0  # MemAvailable
    kept_free: int = 0  # with less, the kernel takes back from everybody what is not protected
    swaps: tuple[Swap, ...] = ()
    mounts: tuple[Mount, ...] = ()
    gpus: int = 0  # NVIDIA cards that the driver has
    cpus: int = 1
    kernel: str = ""
    listening: frozenset[tuple[str, int]] = frozenset()  # (address, port) of every listening TCP socket
    cgroup2: bool = False  # the unified hierarchy is mounted at /sys/fs/cgroup
    controllers: frozenset[str] = frozenset()  # of the root cgroup
    pressure: bool = False  # PSI is compiled in and on
    tunables: Mapping[str, str] = field(default_factory=dict)  # see read_tunables

    @property
    def swap(self) -> int:
        """Bytes of swap that is on, in all."""
        return sum(swap.size for swap in self.swaps)

    @property
    def swap_used(self) -> int:
        """Bytes that are swapped out now."""
        return sum(swap.used for swap in self.swaps)

    def mount_of(self, path: Path) -> Mount | None:
        """The mount that holds `path` (which need not exist): the longest mount point that contains it; the last mounted wins."""
        return _mount_of(self.mounts, path)


def _mount_of(mounts: Iterable[Mount], path: Path) -> Mount | None:
    best: Mount | None = None
    for mount in mounts:
        if path.is_relative_to(mount.point) and (best is None or len(mount.point) >= len(best.point)):
            best = mount
    return best


def read_host(root: Path = Path("/"), *, behind: Path | None = None) -> Host:
    """The facts below `root` ("/" for this machine). A fact whose file is missing has its empty value.

    An automount that `behind` lies in is mounted first: until somebody opens it, it is an `autofs` and says nothing of what it becomes.
    """
    if behind:
        with suppress(OSError):
            os.close(os.open(behind.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    return Host(
        memory=_meminfo(root, "MemTotal"),
        memory_available=_meminfo(root, "MemAvailable"),
        kept_free=_kept_free(root),
        swaps=read_swaps(root),
        mounts=_mounts(root),
        gpus=_count(root / "proc/driver/nvidia/gpus"),
        cpus=len(re.findall(r"^processor\s*:", _text(root / "proc/cpuinfo"), re.MULTILINE)) or 1,
        kernel=_text(root / "proc/sys/kernel/osrelease").strip(),
        listening=_listening(root),
        cgroup2=(root / "sys/fs/cgroup/cgroup.controllers").exists(),
        controllers=frozenset(_text(root / "sys/fs/cgroup/cgroup.controllers").split()),
        pressure=bool(_text(root / "proc/pressure/memory")),
        tunables=read_tunables(root),
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="surrogateescape")
    except OSError:  # absent, or switched off in this kernel (reading /proc/pressure with psi=0 is EOPNOTSUPP)
        return ""


def _count(folder: Path) -> int:
    try:
        return sum(1 for _ in folder.iterdir())
    except OSError:
        return 0


def _meminfo(root: Path, key: str) -> int:
    match = re.search(rf"^{key}:\s+(\d+) kB", _text(root / "proc/meminfo"), re.MULTILINE)
    return int(match[1]) * 1024 if match else 0


def _kept_free(root: Path) -> int:
    """Bytes of the high watermarks of all zones (proc_zoneinfo(5)): with less free, the kernel swaps out, and a login may have to wait."""
    pages = re.findall(r"^ +high +(\d+)$", _text(root / "proc/zoneinfo"), re.MULTILINE)
    return sum(map(int, pages)) * os.sysconf("SC_PAGE_SIZE")


def _unescape(text: str) -> str:
    r"""The kernel writes space, tab, newline and backslash in paths as \040 \011 \012 \134."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def read_swaps(root: Path = Path("/")) -> tuple[Swap, ...]:
    """The swap that is on, alone: for a step that checks what it did."""
    rows = (line.split() for line in _text(root / "proc/swaps").splitlines()[1:])
    return tuple(Swap(_unescape(row[0]), row[1], int(row[2]) * 1024, int(row[3]) * 1024) for row in rows if len(row) >= 4)


def _mounts(root: Path) -> tuple[Mount, ...]:
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
    found = set()
    decode: dict[str, Callable[[str], str]] = {"tcp": _ipv4, "tcp6": _ipv6}
    for name, address_of in decode.items():
        for line in _text(root / "proc/net" / name).splitlines()[1:]:
            row = line.split()
            if len(row) > 3 and row[3] == "0A":  # TCP_LISTEN
                address, _, port = row[1].rpartition(":")
                found.add((address_of(address), int(port, 16)))
    return frozenset(found)


def _ipv4(text: str) -> str:
    return ".".join(str(byte) for byte in reversed(bytes.fromhex(text)))


def _ipv6(text: str) -> str:
    import ipaddress  # noqa: PLC0415 - 4 ms that only a machine with an IPv6 listener pays

    words = bytes.fromhex(text)
    raw = b"".join(words[start : start + 4][::-1] for start in range(0, 16, 4))
    return str(ipaddress.IPv6Address(raw))
