"""Steps on systemd units through systemctl, which asks systemd over D-Bus: they take effect immediately, without a daemon-reload."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from vllm_safe.common.errors import Failure
from vllm_safe.common.file_steps import RemoveFile, WriteFile
from vllm_safe.common.steps import Step


def _systemctl(*arguments: str) -> None:
    try:
        result = subprocess.run(["systemctl", *arguments], capture_output=True, text=True, check=False)
    except OSError as error:
        raise Failure("systemctl was not found", hint="vllm-safe needs a machine that was booted with systemd.") from error
    if result.returncode:
        lines = result.stderr.strip().splitlines() or [f"exit code {result.returncode}"]
        raise Failure(f"systemctl {arguments[0]}: {lines[-1]}", hint="See: journalctl -b -u 'vllm-safe-*' -u 'vllm@*'")


@dataclass(frozen=True)
class SetProperties:
    """Set properties of a unit until the next boot. They apply to a running unit at once, and to a starting one from its first process."""

    unit: str
    properties: Mapping[str, int]

    def describe(self) -> str:
        """Return the step as one line of text."""
        return f"set {' '.join(self._words())} of {self.unit}"

    def run(self) -> None:
        """Set the properties. Raises Failure if systemd refuses."""
        _systemctl("set-property", "--runtime", "--", self.unit, *self._words())

    def _words(self) -> list[str]:
        # systemd compares the list of drop-ins that it wrote with the list on disk. In another order, it would ask for a daemon-reload.
        return [f"{name}={value}" for name, value in sorted(self.properties.items())]


@dataclass(frozen=True)
class TryRestart:
    """Restart a unit if it runs. It need not be installed. The step does not wait, as at boot the unit may be ordered after this one."""

    unit: str

    def describe(self) -> str:
        """Return the step as one line of text."""
        return f"restart {self.unit} if it runs"

    def run(self) -> None:
        """Request the restart. Raises Failure if systemd refuses."""
        _systemctl("try-restart", "--no-block", "--", self.unit)


@dataclass(frozen=True)
class TryReload:
    """Have a unit that runs reload its settings, and wait for it. An error is left to the unit to report."""

    unit: str

    def describe(self) -> str:
        """Return the step as one line of text."""
        return f"have {self.unit} reload its settings if it runs"

    def run(self) -> None:
        """Reload. Raises nothing."""
        with suppress(Failure):
            _systemctl("try-reload-or-restart", "--", self.unit)


@dataclass(frozen=True)
class StopUnit:
    """Stop a unit, and wait until it has stopped."""

    unit: str

    def describe(self) -> str:
        """Return the step as one line of text."""
        return f"stop {self.unit}"

    def run(self) -> None:
        """Stop the unit. Raises Failure if systemd refuses, or has no such unit."""
        _systemctl("stop", "--", self.unit)


@dataclass(frozen=True)
class StopUnits:
    """Stop several units, and wait until they have stopped. Units that are not running are left alone."""

    units: tuple[str, ...]

    def describe(self) -> str:
        """Return the step as one line of text."""
        return f"stop {', '.join(self.units)}"

    def run(self) -> None:
        """Stop the units. Raises Failure if systemd refuses."""
        _systemctl("stop", "--", *self.units)


@dataclass(frozen=True)
class StartSocket:
    """Have systemd listen on the addresses of a socket unit. addresses: their description, for people."""

    unit: str
    addresses: str

    def describe(self) -> str:
        """Return the step as one line of text."""
        return f"start {self.unit}, which listens on {self.addresses}"

    def run(self) -> None:
        """Start the unit. Raises Failure if that is not possible, for example because another process listens there."""
        try:
            _systemctl("start", "--", self.unit)
        except Failure as failure:
            hint = f"Another process may be listening there: systemctl status {self.unit}"
            raise Failure(f"{self.unit} cannot listen on {self.addresses}", hint=hint) from failure


@dataclass(frozen=True)
class WriteDropin:
    """Write a drop-in of a unit, and create its folder. It takes effect after a daemon-reload."""

    path: Path
    content: str

    def describe(self) -> str:
        """Return the step as one line of text."""
        return f"write {self.path}"

    def run(self) -> None:
        """Write the file. Raises Failure if that is not possible."""
        try:
            self.path.parent.mkdir(exist_ok=True)
            self.path.parent.chmod(0o755)
        except OSError as error:
            raise Failure(f"cannot make {self.path.parent}: {error.strerror}") from error
        WriteFile(self.path, self.content).run()


@dataclass(frozen=True)
class RemoveDropin:
    """Remove one file that set-property wrote, and its folder if it is then empty."""

    path: Path

    def describe(self) -> str:
        """Return the step as one line of text."""
        return f"remove {self.path}"

    def run(self) -> None:
        """Remove the file. Raises Failure if that is not possible."""
        RemoveFile(self.path).run()
        with suppress(OSError):  # not empty: it has other drop-ins, too
            self.path.parent.rmdir()


@dataclass(frozen=True)
class DaemonReload:
    """Have systemd reload its unit files."""

    def describe(self) -> str:
        """Return the step as one line of text."""
        return "reload systemd's unit files (daemon-reload)"

    def run(self) -> None:
        """Reload the unit files. Raises Failure if systemd refuses."""
        _systemctl("daemon-reload")


def remove_dropins(files: Iterable[Path]) -> tuple[Step, ...]:
    """Return the steps that remove these files of set-property --runtime. The reload also resets the values in the kernel."""
    paths = tuple(files)
    return (*map(RemoveDropin, paths), DaemonReload()) if paths else ()
