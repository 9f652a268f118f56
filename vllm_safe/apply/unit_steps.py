"""Steps on systemd's units, through systemctl: it asks systemd over D-Bus, and the effect is immediate, with no daemon-reload."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from vllm_safe.common.errors import Failure
from vllm_safe.common.file_steps import RemoveFile
from vllm_safe.common.steps import Step


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
class StopUnit:
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


def remove_dropins(files: Iterable[Path]) -> tuple[Step, ...]:
    """Steps that take back what set-property --runtime left in these files. The reload takes the values back in the kernel, too."""
    paths = tuple(files)
    return (*map(RemoveDropin, paths), DaemonReload()) if paths else ()
