"""Properties of systemd units, and the drop-ins that `systemctl set-property --runtime` leaves."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from vllm_safe.common.program_output import program_output

# Where systemctl set-property --runtime keeps what it was told: the first for units with a file, the second for those without, such as
# init.scope (systemd.unit(5), table of load paths).
CONTROL = (Path("/run/systemd/system.control"), Path("/run/systemd/transient"))

# The form in which systemctl prints a list of strings: systemd's src/basic/escape.c, shell_maybe_quote().
_WORD = re.compile(r'"((?:[^"\\]|\\.)*)"|(\S+)')
_ESCAPED = re.compile(r"\\(.)")


def show_properties(units: Iterable[str], properties: Iterable[str], timeout: float = math.inf) -> dict[str, Mapping[str, str]]:
    """Return the properties of each unit as `systemctl show` prints them, by unit; {} where no systemd runs."""
    wanted = list(units)
    command = ["systemctl", "show", "--property", ",".join(properties), "--", *wanted]
    shown = program_output(command, timeout=timeout)
    if not shown:  # no systemctl, as in a bare chroot, or no systemd that it could ask
        return {}
    # One block for each unit, in the order asked for. A unit that has none of the properties has an empty block, which
    # disappears among the separators: callers ask for a property that every unit has (Id) to keep the count.
    return dict(zip(wanted, map(_parse, shown.split("\n\n")), strict=False))


def show_matching(patterns: Iterable[str], properties: Iterable[str]) -> tuple[Mapping[str, str], ...]:
    """Return the properties of each loaded unit whose name matches one of `patterns`, such as vllm@*.service. Request Id, too."""
    shown = program_output(["systemctl", "show", "--property", ",".join(properties), "--", *patterns])
    return tuple(unit for block in (shown or "").split("\n\n") if (unit := _parse(block)))


def unit_properties(unit: str, *names: str) -> Mapping[str, str]:
    """Return properties of one unit; {} where no systemd answers within ten seconds: for the recorder, which has more to do."""
    return show_properties([unit], names, timeout=10.0).get(unit, {})


def _parse(block: str) -> Mapping[str, str]:
    return dict(line.split("=", 1) for line in block.splitlines() if "=" in line)


def environment_of(shown: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of Environment= in the files of a unit, its drop-ins included. shown: properties from `show_properties`."""
    words = (_unquote(match[1]) if match[1] is not None else match[2] for match in _WORD.finditer(shown.get("Environment", "")))
    return dict(word.split("=", 1) for word in words if "=" in word)


def _unquote(text: str) -> str:
    return _ESCAPED.sub(lambda match: {"n": "\n", "t": "\t"}.get(match[1], match[1]), text)


def runtime_dropins(table: Mapping[str, Iterable[str]], folders: Iterable[Path] = CONTROL) -> tuple[Path, ...]:
    """Return the drop-in files that `set-property --runtime` made for these properties.

    `table` has the properties by unit; a unit is a name, or a glob such as vllm@*.service.
    """
    wanted = [f"{unit}.d/50-{name}.conf" for unit, properties in table.items() for name in properties]
    return tuple(sorted(path for folder in folders for pattern in wanted for path in folder.glob(pattern)))
