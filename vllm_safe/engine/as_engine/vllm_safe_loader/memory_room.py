"""The memory that a process may have: what the limits of its control groups, and the machine, leave beside everything else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

_GROUPS = Path("/sys/fs/cgroup")


def read_room(proc: Path = Path("/proc"), groups: Path = _GROUPS) -> int:
    """Return the bytes."""
    available = next(line for line in (proc / "meminfo").read_text("ascii").splitlines() if line.startswith("MemAvailable:"))
    return min([int(available.split()[1]) << 10, *_rooms(proc, groups)])


def _rooms(proc: Path, groups: Path) -> Iterator[int]:
    """Yield what each limited control group leaves, from that of this process up."""
    name = (proc / "self/cgroup").read_text("utf-8").rpartition("::")[2].strip().strip("/")
    group = groups / name
    while group != groups:
        limit = (group / "memory.max").read_text("ascii").strip() if (group / "memory.max").exists() else "max"
        if limit != "max":
            used = dict(line.split() for line in (group / "memory.stat").read_text("ascii").splitlines())
            # Clean pages of files can go; those that are charged but belong to none, as tmpfs's, cannot.
            cached = int(used["active_file"]) + int(used["inactive_file"])
            yield int(limit) - int((group / "memory.current").read_text("ascii")) + cached
        group = group.parent
