"""What is at the places where a swapfile may be, read without following links. Ours is known by its label, not by its name."""

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
UNREADABLE = "readable by root only"  # foreign to a user who cannot tell
PAGE = os.sysconf("SC_PAGE_SIZE")

# The swap header, as mkswap(8) writes it into the first page (include/linux/swap.h, union swap_header).
_MAGIC = b"SWAPSPACE2"  # the last bytes of the page; a hibernated system leaves another word there
_HEADER = struct.Struct("=III16s16s")  # version, last page, bad pages, UUID, label
_HEADER_AT = 1024

_BTRFS_IOC_FS_INFO, _FS_INFO_SIZE, _FSID = 0x8400941F, 1024, slice(16, 32)  # linux/btrfs.h


@dataclass(frozen=True)
class CandidateFile:
    """A file at a path where a swapfile of ours may be. `foreign` says why it is not ours, "" if it is; `size` in bytes."""

    path: Path
    size: int = 0
    foreign: str = ""


@dataclass(frozen=True)
class SwapFolder:
    """The folder of `swap.file`. `problem` says why no file can be made in it, or is ""; sizes in bytes, of its file system."""

    problem: str = ""
    way_out: str = ""
    total: int = 0
    free: int = 0  # for everybody: without the blocks that ext4 keeps for root
    profiles: frozenset[str] = frozenset()  # how btrfs stores data: "single", "raid1" ...


@dataclass(frozen=True)
class SwapFacts:
    """All that a decision about the swapfile needs beside the config and the Host."""

    path: Path  # of the swapfile, as /proc/swaps would show it: links in `swap.file` followed
    files: tuple[CandidateFile, ...] = ()  # those that exist: at the configured and the default path, and wherever a file is swapped to
    folder: SwapFolder = SwapFolder()
    permitted: bool = True  # root may call swapon here
    bound: int = 0  # bytes swapped out of control groups with a MemoryMax, as models have: it may not let them back into RAM


def second_name(path: Path) -> Path:
    """Where a new swapfile is made while the old one is at `path`. A file that is swapped to cannot be renamed."""
    return path.with_name(f"{path.name}.new")


def read_swap(path: Path, host: Host) -> SwapFacts:
    """The facts about the swapfile at `path`, at the default path, and wherever else a file is swapped to. Whole only for root."""
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
    """What is at `path`; None if nothing is."""
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
    """Descriptors of the folder, which is root's own, and of the file. No link is followed, no pipe waited for. OSError or Failure."""
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
    """Why this file was not made by us, or ""."""
    info = os.fstat(handle)
    if not stat.S_ISREG(info.st_mode):
        return "not a regular file"
    if reason := why_no_swap_space(os.pread(handle, PAGE, 0)):
        return reason
    if info.st_uid != os.geteuid() or stat.S_IMODE(info.st_mode) != MODE:
        return f"of user {info.st_uid} with mode {stat.S_IMODE(info.st_mode):04o}, not root's with 0600"
    return "" if info.st_nlink == 1 else "a file with a second name (a hard link)"


def why_no_swap_space(page: bytes) -> str:
    """Why the first page of a file is not that of swap space with our label, or ""."""
    if len(page) < PAGE or not page.endswith(_MAGIC):
        return "no swap space"
    _version, _last, _bad, uuid, label = _HEADER.unpack_from(page, _HEADER_AT)
    if label.rstrip(b"\0") != LABEL.encode() or not any(uuid):
        return "swap space of somebody else"
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
    """How the btrfs that has the folder stores data; nothing where it is not btrfs, or does not say."""
    try:
        answer = fcntl.ioctl(folder, _BTRFS_IOC_FS_INFO, bytes(_FS_INFO_SIZE))
        raw = answer[_FSID].hex()
        uuid = "-".join((raw[:8], raw[8:12], raw[12:16], raw[16:20], raw[20:]))
        data = Path("/sys/fs/btrfs", uuid, "allocation/data")
        return frozenset(entry.name for entry in data.iterdir() if entry.is_dir())
    except OSError:
        return frozenset()


def _bound(group: Path) -> int:
    """Bytes swapped out of the topmost groups below `group` that have a limit."""
    total = 0
    for below in group.iterdir() if group.is_dir() else ():
        try:
            swapped = int((below / "memory.swap.current").read_text())
            if swapped:
                unlimited = (below / "memory.max").read_text() == "max\n"
                total += _bound(below) if unlimited else swapped
        except (OSError, ValueError):  # a file, a group without the memory controller, or one that has just gone
            continue
    return total
