"""Facts about possible swapfiles, read without following links. A swapfile of vllm-safe is recognised by its label, not by its name."""

from __future__ import annotations

import fcntl
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vllm_safe.common import libc
from vllm_safe.common.errors import Failure
from vllm_safe.common.kernfs import CGROUPS
from vllm_safe.common.trusted_paths import open_trusted_folder
from vllm_safe.config import settings
from vllm_safe.host.host_facts import Host

LABEL = "vllm-safe"
MODE = 0o600
UNREADABLE = "readable by root only"  # the value of `foreign` for a user who cannot read the file
PAGE = os.sysconf("SC_PAGE_SIZE")

# The swap header, as mkswap(8) writes it into the first page (include/linux/swap.h, union swap_header).
_MAGIC = b"SWAPSPACE2"  # the last bytes of the page; a hibernated system leaves another signature there
_HEADER = struct.Struct("=III16s16s")  # version, last page, bad pages, UUID, label
_HEADER_AT = 1024

_BTRFS_IOC_FS_INFO, _FS_INFO_SIZE, _FSID = 0x8400941F, 1024, slice(16, 32)  # linux/btrfs.h


@dataclass(frozen=True)
class CandidateFile:
    """A file at a possible path of a swapfile. `foreign`: why it is not one of vllm-safe, or ""; `size` in bytes."""

    path: Path
    size: int = 0
    foreign: str = ""


@dataclass(frozen=True)
class SwapFolder:
    """The folder of `swap.file`. `problem`: why no file can be made in it, or ""; sizes of its file system in bytes."""

    problem: str = ""
    way_out: str = ""
    total: int = 0
    free: int = 0  # available to any user: without the blocks that ext4 reserves for root
    profiles: frozenset[str] = frozenset()  # how btrfs stores data: "single", "raid1" ...


@dataclass(frozen=True)
class SwapFacts:
    """The facts that the decision about the swapfile needs besides the configuration and the Host."""

    path: Path  # path of the swapfile as /proc/swaps would show it, with the links in `swap.file` resolved
    files: tuple[CandidateFile, ...] = ()  # existing files at the configured and the default path, and all active swapfiles
    folder: SwapFolder = SwapFolder()
    permitted: bool = True  # root may call swapon here
    bound: int = 0  # bytes swapped out of cgroups with a MemoryMax=, such as models: the limit may prevent reading them back


def second_name(path: Path) -> Path:
    """Return the path of a new swapfile while the old one is at `path`, since an active swapfile cannot be renamed."""
    return path.with_name(f"{path.name}.new")


def read_swap(path: Path, host: Host) -> SwapFacts:
    """Read the facts about the swapfile at `path`, at the default path, and about active swapfiles. They are complete only for root."""
    path = Path(os.path.realpath(path.parent), path.name)
    on = (Path(area.path) for area in host.swaps if area.kind == "file")
    default = settings.Swap().file
    paths = dict.fromkeys([path, second_name(path), default, second_name(default), *on])
    return SwapFacts(
        path=path,
        files=tuple(file for each in paths if (file := read_candidate(each))),
        folder=_look_at_folder(path.parent),
        permitted=os.geteuid() != 0 or libc.may_swap(),  # whoever is not root only asks what root could do
        bound=_bound(Path(CGROUPS)),
    )


def read_candidate(path: Path) -> CandidateFile | None:
    """Read the file at `path`; None if there is none."""
    if not os.path.lexists(path):
        return None
    try:
        with open_candidate(path) as (_, handle):
            return CandidateFile(path, os.fstat(handle).st_size, why_foreign(handle))
    except PermissionError:
        return CandidateFile(path, foreign=UNREADABLE)
    except OSError as error:  # a link, a device without a driver ...
        return CandidateFile(path, foreign=(error.strerror or str(error)).lower())
    except Failure as failure:
        return CandidateFile(path, foreign=failure.message)


@contextmanager
def open_candidate(path: Path) -> Iterator[tuple[int, int]]:
    """Open the folder, which only root can write, and the file in it; yield both descriptors.

    No link is followed, and no pipe is waited for. Raises OSError or Failure.
    """
    folder = open_trusted_folder(path.parent)
    try:
        handle = os.open(path.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
        try:
            yield folder, handle
        finally:
            os.close(handle)
    finally:
        os.close(folder)


def why_foreign(handle: int) -> str:
    """Return why this file is not a swapfile of vllm-safe, or ""."""
    info = os.fstat(handle)
    if not stat.S_ISREG(info.st_mode):
        return "not a regular file"
    if reason := why_no_swap_space(os.pread(handle, PAGE, 0)):
        return reason
    if info.st_uid != os.geteuid() or stat.S_IMODE(info.st_mode) != MODE:
        return f"owned by user {info.st_uid} with mode {stat.S_IMODE(info.st_mode):04o}, not by root with 0600"
    return "" if info.st_nlink == 1 else "a file with several hard links"


def why_no_swap_space(page: bytes) -> str:
    """Return why the first page of a file is not that of swap space with the label of vllm-safe, or ""."""
    if len(page) < PAGE or not page.endswith(_MAGIC):
        return "not swap space"
    _version, _last, _bad, uuid, label = _HEADER.unpack_from(page, _HEADER_AT)
    if label.rstrip(b"\0") != LABEL.encode() or not any(uuid):
        return "swap space with another label"
    return ""


def _look_at_folder(path: Path) -> SwapFolder:
    try:
        folder = open_trusted_folder(path)
    except Failure as failure:
        return SwapFolder(failure.message, failure.hint)
    try:
        space = os.fstatvfs(folder)  # psutil's disk_usage takes a path, and this folder has been looked at
        return SwapFolder(
            total=space.f_blocks * space.f_frsize,
            free=space.f_bavail * space.f_frsize,
            profiles=_btrfs_profiles(folder),
        )
    finally:
        os.close(folder)


def _btrfs_profiles(folder: int) -> frozenset[str]:
    """Read the data profiles of the btrfs with the folder; none if it is not btrfs, or they cannot be read."""
    try:
        answer = fcntl.ioctl(folder, _BTRFS_IOC_FS_INFO, bytes(_FS_INFO_SIZE))
        raw = answer[_FSID].hex()
        uuid = "-".join((raw[:8], raw[8:12], raw[12:16], raw[16:20], raw[20:]))
        data = Path("/sys/fs/btrfs", uuid, "allocation/data")
        return frozenset(entry.name for entry in data.iterdir() if entry.is_dir())
    except OSError:
        return frozenset()


def _bound(group: Path) -> int:
    """Return the bytes swapped out of the topmost cgroups below `group` that have a limit."""
    total = 0
    for child in group.iterdir() if group.is_dir() else ():
        try:
            swapped = int((child / "memory.swap.current").read_text())
            if swapped:
                unlimited = (child / "memory.max").read_text() == "max\n"
                total += _bound(child) if unlimited else swapped
        except (OSError, ValueError):  # a file, a cgroup without the memory controller, or one that was just removed
            continue
    return total
