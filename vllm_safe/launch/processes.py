"""The processes of the unit, read once a second while a model loads: their identity, state, and the bytes that they have read.

Only /proc/PID/stat, statm and io are read for each process: 12 processes are 36 small reads, 0.1 % of a core. A process that ends
meanwhile is left out. /proc/PID/io is readable for the same user; where it is not, its figures are 0.
"""

from __future__ import annotations

import os
import re
import zlib
from pathlib import Path
from typing import NamedTuple

_CGROUPS = Path("/sys/fs/cgroup")
_PROC = Path("/proc")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICK = 1 / os.sysconf("SC_CLK_TCK")
_CHECKPOINTS = (".safetensors", ".bin", ".gguf", ".pt")  # in this order: vLLM loads the first type that exists


class Process(NamedTuple):
    """One process. Totals since it began are in bytes and seconds, sizes in bytes."""

    pid: int
    started: int  # ticks since boot: together with the pid, it identifies the process
    comm: str
    state: str  # as in proc_pid_stat(5): R running, S and D waiting, T stopped, t traced, Z zombie
    cpu: float
    faults: int  # page faults, minor and major
    read: int  # from disks, including read-ahead and swap
    called: int  # by read(2) and similar calls, from any source
    resident: int
    mapped: int  # the part of resident that is pages of files: a mapped checkpoint, whether or not it was in the page cache before


def read_processes(unit: Path | None, me: int) -> tuple[Process, ...]:
    """Read all processes of the cgroup directory `unit` except `me`; if `unit` is None, the descendants of `me`."""
    pids = _of_cgroup(unit) if unit else None
    return tuple(found for pid in (_descendants(me) if pids is None else pids) if pid != me and (found := _read(pid)))


def own_cgroup() -> Path | None:
    """Return the directory of this process's own cgroup, or None if there is none that can be read (cgroup v1, a container)."""
    try:
        path = next(line[3:] for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines() if line.startswith("0::"))
    except (OSError, StopIteration):
        return None
    folder = _CGROUPS / path.strip("/")
    # The root of the visible hierarchy contains all other processes, too.
    return folder if path != "/" and (folder / "cgroup.procs").exists() else None


def checkpoint_sizes(model: Path) -> tuple[int, ...]:
    """Return the size of each weights file in a model's directory, in vLLM's reading order (weight_utils.py, _natural_sort_key)."""
    try:
        files = [entry for entry in os.scandir(model) if entry.is_file()]
        for ending in _CHECKPOINTS:
            if names := sorted((entry for entry in files if entry.name.endswith(ending)), key=lambda entry: _natural(entry.name)):
                return tuple(entry.stat().st_size for entry in names)
    except OSError:
        pass  # the server itself reports a flaw of its model
    return ()


def files_digest(model: Path) -> str:
    """Return a short text that is the same for folders whose files have the same names and sizes; "" if there is no such folder."""
    try:
        sizes = sorted(f"{entry.name} {entry.stat().st_size}" for entry in os.scandir(model) if entry.is_file() and entry.name[0] != ".")
    except OSError:
        return ""
    return f"{len(sizes)} files, {zlib.crc32(chr(10).join(sizes).encode(errors='surrogateescape')):08x}"


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _of_cgroup(unit: Path) -> list[int] | None:
    try:
        return [int(pid) for pid in (unit / "cgroup.procs").read_bytes().split()]
    except (OSError, ValueError):
        return None


def _descendants(me: int) -> list[int]:
    found = [me]
    for pid in found:
        try:
            for task in Path(f"{_PROC}/{pid}/task").iterdir():
                found.extend(map(int, _content(f"{task}/children").split()))
        except OSError:
            continue
    return found[1:]


def _read(pid: int) -> Process | None:
    try:
        head, _, tail = _content(f"{_PROC}/{pid}/stat").rpartition(b") ")
        fields = tail.split()
        sizes = _content(f"{_PROC}/{pid}/statm").split()
        called, read = _transferred(pid)
    except OSError:
        return None
    return Process(
        pid=pid,
        started=int(fields[19]),
        comm=head.partition(b" (")[2].decode(errors="replace"),
        state=fields[0].decode(),
        cpu=(int(fields[11]) + int(fields[12])) * _TICK,
        faults=int(fields[7]) + int(fields[9]),
        read=read,
        called=called,
        resident=int(sizes[1]) * _PAGE,
        mapped=int(sizes[2]) * _PAGE,
    )


def _transferred(pid: int) -> tuple[int, int]:
    """Return rchar and read_bytes of proc_pid_io(5)."""
    try:
        values = _content(f"{_PROC}/{pid}/io").split()
    except PermissionError:
        return 0, 0
    return int(values[1]), int(values[9])


def _content(path: str) -> bytes:
    """Read a file of /proc with one read(2): Path and open() cost five times as much. Raises OSError."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(handle, 1 << 16)
    finally:
        os.close(handle)
