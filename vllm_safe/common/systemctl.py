"""Properties of systemd units, and the drop-ins that `systemctl set-property --runtime` leaves."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

# The folders in which `systemctl set-property --runtime` keeps its drop-ins: the first for units that have a unit file, the second for
# units without one, such as init.scope (systemd.unit(5), table of load paths).
CONTROL = (Path("/run/systemd/system.control"), Path("/run/systemd/transient"))


def show_properties(units: Iterable[str], properties: Iterable[str]) -> dict[str, Mapping[str, str]]:
    """Return the properties of each unit as `systemctl show` prints them, by unit; {} where no systemd runs."""
    wanted = list(units)
    command = ["systemctl", "show", "--property", ",".join(properties), "--", *wanted]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:  # no systemctl: a container or a bare chroot
        return {}
    if result.returncode:
        return {}
    # systemctl prints one block for each unit, in the requested order. A unit that has none of the properties has an empty block, which
    # cannot be told from the separators. To keep the count, callers request a property that every unit has (Id).
    return dict(zip(wanted, map(_parse, result.stdout.split("\n\n")), strict=False))


def _parse(block: str) -> Mapping[str, str]:
    return dict(line.split("=", 1) for line in block.splitlines() if "=" in line)


def runtime_dropins(table: Mapping[str, Iterable[str]], folders: Iterable[Path] = CONTROL) -> tuple[Path, ...]:
    """Return the drop-in files that `set-property --runtime` made for these properties.

    `table` has the properties by unit; a unit is a name, or a glob such as vllm@*.service.
    """
    wanted = [f"{unit}.d/50-{name}.conf" for unit, properties in table.items() for name in properties]
    return tuple(sorted(path for folder in folders for pattern in wanted for path in folder.glob(pattern)))
