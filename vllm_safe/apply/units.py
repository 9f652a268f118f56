"""Steps on systemd's units, through systemctl: it asks systemd over D-Bus, and the effect is immediate, with no daemon-reload."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from vllm_safe.apply.files import RemoveFile
from vllm_safe.apply.steps import Step
from vllm_safe.decide.limits import EACH_UNIT, in_force
from vllm_safe.errors import Failure


def _systemctl(*arguments: str) -> None:
    try:
        result = subprocess.run(["systemctl", *arguments], capture_output=True, text=True, check=False)
    except OSError as error:
        raise Failure("systemctl is not there", hint="vllm-safe needs a machine that was booted with systemd.") from error
    if result.returncode:
        said = result.stderr.strip().splitlines() or [f"exit code {result.returncode}"]
        raise Failure(f"systemctl {arguments[0]}: {said[-1]}", hint="See: journalctl -b -u 'vllm-safe-*' -u 'vllm@*'")


@dataclass(frozen=True)
class SetProperties:
    """Limits of a unit until the next boot; a running unit has them at once, one that is about to start has them from its first process."""

    unit: str
    properties: Mapping[str, int]

    def describe(self) -> str:
        """The step in one line."""
        return f"set {' '.join(self._words())} of {self.unit}"

    def run(self) -> None:
        """Failure if systemd refuses."""
        _systemctl("set-property", "--runtime", "--", self.unit, *self._words())

    def _words(self) -> list[str]:
        # systemd compares the drop-ins that it made with those on disk, as lists: out of order, it would ask for a daemon-reload.
        return [f"{name}={value}" for name, value in sorted(self.properties.items())]


@dataclass(frozen=True)
class TryRestart:
    """Restart a unit if it runs; it need not even be installed. Does not wait: at boot it may be ordered after us."""

    unit: str

    def describe(self) -> str:
        """The step in one line."""
        return f"restart {self.unit} if it runs"

    def run(self) -> None:
        """Failure if systemd refuses."""
        _systemctl("try-restart", "--no-block", "--", self.unit)


@dataclass(frozen=True)
class Stop:
    """Stop a unit, and wait until it has ended."""

    unit: str

    def describe(self) -> str:
        """The step in one line."""
        return f"stop {self.unit}"

    def run(self) -> None:
        """Failure if systemd refuses, or knows no such unit."""
        _systemctl("stop", "--", self.unit)


@dataclass(frozen=True)
class RemoveDropin:
    """Take back one file that set-property made, and its folder if that was all in it."""

    path: Path

    def describe(self) -> str:
        """The step in one line."""
        return f"remove {self.path}"

    def run(self) -> None:
        """Failure if it cannot be removed."""
        RemoveFile(self.path).run()
        with suppress(OSError):  # not empty: somebody else's are in it
            self.path.parent.rmdir()


@dataclass(frozen=True)
class DaemonReload:
    """Let systemd read its unit files again."""

    def describe(self) -> str:
        """The step in one line."""
        return "let systemd read its unit files again"

    def run(self) -> None:
        """Failure if systemd refuses."""
        _systemctl("daemon-reload")


def missing_properties(wanted: Mapping[str, Mapping[str, int]], shown: Mapping[str, Mapping[str, str]]) -> tuple[Step, ...]:
    """Steps for the units that `systemctl show` has with other values than wanted.

    A default for the units in a slice comes first, and what runs there has it after the reload: broken off before, all of it is done again.
    Last comes a reload where systemd would else ask for one: it appends the drop-ins of set-property to those that it has, and those on
    disk are in the order of their names, an admin's override.conf after our 50-MemoryMax.conf.
    """
    every = [(unit, name, value) for unit, properties in wanted.items() for name, value in properties.items()]
    defaults, others = (_missing([one for one in every if (one[1] == EACH_UNIT) is first], shown) for first in (True, False))
    reload = (DaemonReload(),) if any(EACH_UNIT in wanted[step.unit] for step in (*defaults, *others)) else ()
    reload_at_last = (DaemonReload(),) if any(_is_out_of_order(step, shown) for step in others) else ()
    return (*defaults, *reload, *others, *reload_at_last)


def _is_out_of_order(step: SetProperties, shown: Mapping[str, Mapping[str, str]]) -> bool:
    """Whether systemd's list of the unit's drop-ins is after the step no longer the one that it finds on disk."""
    there = [path.rpartition("/")[2] for path in shown.get(step.unit, {}).get("DropInPaths", "").split()]
    names = list(dict.fromkeys((*there, *(f"50-{name}.conf" for name in sorted(step.properties)))))
    return names != sorted(names)


def _missing(wanted: Iterable[tuple[str, str, int]], shown: Mapping[str, Mapping[str, str]]) -> tuple[SetProperties, ...]:
    by_unit: dict[str, dict[str, int]] = {}
    for unit, name, value in wanted:
        by_unit.setdefault(unit, {})[name] = value
    return tuple(SetProperties(unit, properties) for unit, properties in by_unit.items() if not in_force(properties, shown.get(unit, {})))


def remove_dropins(files: Iterable[Path]) -> tuple[Step, ...]:
    """Steps that take back what set-property --runtime left in these files. The reload takes the values back in the kernel, too."""
    paths = tuple(files)
    return (*map(RemoveDropin, paths), DaemonReload()) if paths else ()
