"""The memory that this process can still use, within the limits of its control groups and of the machine.

launch/page_cache.py (read_cache_room) computes the same: this plugin runs in the engine's Python, which does not have the rest of
the package.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

_GROUPS = Path("/sys/fs/cgroup")


def read_room(proc: Path = Path("/proc"), groups: Path = _GROUPS) -> int:
    """Return the available bytes: the least that the machine or any limited control group of this process has left."""
    available = next(line for line in (proc / "meminfo").read_text("ascii").splitlines() if line.startswith("MemAvailable:"))
    return min([int(available.split()[1]) << 10, *_room_of_groups(proc, groups)])


def _room_of_groups(proc: Path, groups: Path) -> Iterator[int]:
    """Yield the bytes that each limited control group has left, from the group of this process up to the root."""
    name = (proc / "self/cgroup").read_text("utf-8").rpartition("::")[2].strip().strip("/")
    group = groups / name
    while group != groups:
        limit = (group / "memory.max").read_text("ascii").strip() if (group / "memory.max").exists() else "max"
        if limit != "max":
            used = dict(line.split() for line in (group / "memory.stat").read_text("ascii").splitlines())
            # Clean pages of files can be reclaimed. Cached pages without a file on disk, such as those of tmpfs, cannot.
            cached = int(used["active_file"]) + int(used["inactive_file"])
            yield int(limit) - int((group / "memory.current").read_text("ascii")) + cached
        group = group.parent
