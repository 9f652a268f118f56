"""Files of the kernel below /proc and /sys/fs/cgroup: how they are read, and the formats that they are written in.

Resident in the guard and the recorder: standard library only, without pathlib (1 MB) and re. drill/login_probes.py runs alone
(python3 -I -S) and cannot share it: a test compares its own SLICES.
"""

from __future__ import annotations

import os

CGROUPS = "/sys/fs/cgroup"
MODELS_SLICE = "vllm.slice"  # all models, downloads and the drill's hog
SYSTEM_SLICES = ("system.slice", "user.slice", "init.scope")  # the operating system, as far as people feel it
MEMORY_PRESSURE = "/proc/pressure/memory"  # of the whole machine
_CHUNK = 1 << 14  # bytes
_MOST_LANES = 32  # PCI Express Base Specification, Link Status register


def read_kernel_file(path: str, errors: str = "replace") -> str:
    """Return the whole text of a file; "" if it is gone, or if this kernel has none (PSI with psi=0 is EOPNOTSUPP).

    errors: what becomes of bytes that are not UTF-8, as `bytes.decode` has it.
    """
    content = b""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            while more := os.read(file, _CHUNK):  # of a long list the kernel hands out a page at a time
                content += more
        finally:
            os.close(file)
    except OSError:
        return ""
    return content.decode(errors=errors)


def parse_number(text: str) -> int | None:
    """Return a single number (memory.current); None for "max" and for nothing."""
    text = text.strip()
    return int(text) if text.isdecimal() else None


def read_lanes(path: str) -> int:
    """Return the width of a PCIe link, 0 if unknown. A card that fell off the bus reads as all ones: 63 lanes."""
    width = parse_number(read_kernel_file(path))
    return width if width is not None and width <= _MOST_LANES else 0


def parse_flat_keyed(text: str) -> dict[str, int]:
    """Return lines of a name and a number: memory.stat, memory.events, cpu.stat."""
    rows = (line.split() for line in text.splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) == 2 and row[1].isdecimal()}


def parse_meminfo(text: str) -> dict[str, int]:
    """Return the sizes in /proc/meminfo by name, in bytes; its counts, which have no unit, are left out."""
    rows = (line.split() for line in text.splitlines())
    return {row[0].rstrip(":"): int(row[1]) * 1024 for row in rows if len(row) == 3 and row[1].isdecimal()}


def parse_stall(text: str, kind: str = "full") -> int | None:
    """Return the microseconds since boot in which all tasks ("full"), or any ("some"), waited at once, from a pressure file (PSI)."""
    total = _pressure_field(text, kind, "total")
    return int(total) if total.isdecimal() else None


def parse_stall_share(text: str, kind: str = "full") -> float | None:
    """Return the share (0..1) of the last ten seconds in which tasks waited; `kind` as for parse_stall."""
    share = _pressure_field(text, kind, "avg10")
    return float(share) / 100 if share.replace(".", "", 1).isdecimal() else None


def _pressure_field(text: str, kind: str, field: str) -> str:
    for line in text.splitlines():
        name, *values = line.split()[:5] or ("",)
        if name == kind:
            return next((value[len(field) + 1 :] for value in values if value.startswith(f"{field}=")), "")
    return ""
