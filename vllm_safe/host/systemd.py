"""What systemd knows: properties of units, and the drop-ins that `set-property --runtime` left."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

# Where systemctl set-property --runtime keeps what it was told: the first for units with a file, the second for those without, such as
# init.scope (systemd.unit(5), table of load paths).
CONTROL = (Path("/run/systemd/system.control"), Path("/run/systemd/transient"))

# As systemctl prints a list of strings: systemd's src/basic/escape.c, shell_maybe_quote().
_WORD = re.compile(r'"((?:[^"\\]|\\.)*)"|(\S+)')
_ESCAPED = re.compile(r"\\(.)")


def show(units: Iterable[str], properties: Iterable[str]) -> dict[str, Mapping[str, str]]:
    """The properties of each unit as `systemctl show` prints them, by unit; {} where no systemd runs."""
    wanted = list(units)
    command = ["systemctl", "show", "--property", ",".join(properties), "--", *wanted]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:  # no systemctl: a container or a bare chroot
        return {}
    if result.returncode:
        return {}
    # One block for each unit, in the order asked for. A unit that has none of the properties has an empty block, which
    # disappears among the separators: callers ask for a property that every unit has (Id) to keep the count.
    return dict(zip(wanted, map(_parse, result.stdout.split("\n\n")), strict=False))


def _parse(block: str) -> Mapping[str, str]:
    return dict(line.split("=", 1) for line in block.splitlines() if "=" in line)


def environment_of(shown: Mapping[str, str]) -> dict[str, str]:
    """The variables of Environment= in a unit's files, by the properties that `show` returned: the unit's own file and all drop-ins."""
    words = (_unquote(match[1]) if match[1] is not None else match[2] for match in _WORD.finditer(shown.get("Environment", "")))
    return dict(word.split("=", 1) for word in words if "=" in word)


def _unquote(text: str) -> str:
    return _ESCAPED.sub(lambda match: {"n": "\n", "t": "\t"}.get(match[1], match[1]), text)


def runtime_dropins(table: Mapping[str, Iterable[str]], folders: Iterable[Path] = CONTROL) -> tuple[Path, ...]:
    """The drop-in files that set-property --runtime made for these properties, by unit (a name, or a glob such as vllm@*.service)."""
    wanted = [f"{unit}.d/50-{name}.conf" for unit, properties in table.items() for name in properties]
    return tuple(sorted(path for folder in folders for pattern in wanted for path in folder.glob(pattern)))
