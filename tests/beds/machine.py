"""The interface of every bed."""

from __future__ import annotations

import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from shlex import join, quote
from types import TracebackType
from typing import Self

ENVIRONMENT = {  # the environment of commands in a bed: that of root on Debian, nothing from the host
    "DEBIAN_FRONTEND": "noninteractive",
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
}


TIED = ("setpriv", "--pdeathsig", "KILL")  # put before a command on the host: it is killed when this process ends, in whatever way
Completed = subprocess.CompletedProcess[str]


class BedError(Exception):
    """A bed did not boot, or a command in it failed unexpectedly."""


class Machine(ABC):
    """A throwaway Debian with systemd. As a context manager, it is taken down at the end, whatever happened."""

    @property
    def patience(self) -> float:
        """What every time limit is multiplied by."""
        return 1.0

    @abstractmethod
    def stop(self) -> None:
        """Take the bed down at once, as a power cut does, and remove what it left. Can be called twice."""

    @abstractmethod
    def _execute(self, command: Sequence[str], stdin: str, timeout: float) -> Completed:
        """Run the program `command` in the bed. Raises subprocess.TimeoutExpired, with the output so far, after `timeout` seconds."""

    @abstractmethod
    def put(self, source: Path, target: str) -> None:
        """Copy a file of the host into the bed."""

    def __enter__(self) -> Self:
        """Return the running bed."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        """Take the bed down."""
        self.stop()

    def run(self, command: str | Sequence[str], *, check: bool = True, timeout: float = 120, stdin: str = "") -> Completed:
        """Run a command as root in the bed: a string with its shell, a list directly. `timeout` is in seconds.

        Raises BedError with all output when the time is over or, with `check`, when the command fails.
        """
        timeout *= self.patience
        argv = ["sh", "-c", command] if isinstance(command, str) else list(command)
        shown = command if isinstance(command, str) else join(command)
        try:
            done = self._execute(argv, stdin, timeout)
        except subprocess.TimeoutExpired as late:
            raise BedError(f"`{shown}` took more than {timeout:.0f} s\n{_text(late.stdout)}{_text(late.stderr)}") from None
        if check and done.returncode:
            raise BedError(f"`{shown}` ended with {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def out(self, command: str | Sequence[str], *, timeout: float = 120) -> str:
        """Return the stdout of a command that must succeed, stripped. Raises BedError."""
        return self.run(command, timeout=timeout).stdout.strip()

    def wait_for(self, what: str, holds: Callable[[], bool], *, timeout: float = 60, pause: float = 0.2) -> None:
        """Wait until `holds()` is true; it may raise BedError until then. Raises BedError with `what` after `timeout` seconds.

        `pause`: seconds between two looks, but never less than three times what the last look took; after a look of more than 5 / 3 s, 5 s,
        or as long as it took. In an emulated machine the looks would take the processor from what is waited for.
        """
        timeout *= self.patience
        end, wrong = time.monotonic() + timeout, ""
        while True:
            began = time.monotonic()
            try:
                if holds():
                    return
            except BedError as error:  # the condition may not be observable yet
                wrong = f"\n{error}"
            if time.monotonic() > end:
                raise BedError(f"waited {timeout:.0f} s in vain: {what}{wrong}")
            took = time.monotonic() - began
            time.sleep(max(pause, min(3 * took, 5.0), took))

    def write(self, path: str, text: str, *, mode: int = 0o644) -> None:
        """Write a file in the bed, and create its folder."""
        self.run(f'mkdir -p "$(dirname {quote(path)})" && cat > {quote(path)} && chmod {mode:o} {quote(path)}', stdin=text)

    def read(self, path: str) -> str:
        """Return the text of a file in the bed."""
        return self.run(["cat", path]).stdout

    def exists(self, path: str) -> bool:
        """Return whether `path` exists in the bed; a dangling symlink does."""
        return self.run(f"[ -e {quote(path)} ] || [ -L {quote(path)} ]", check=False).returncode == 0

    def install(self, deb: Path) -> str:
        """Run `apt install ./x.deb` as a person does. Return apt's output."""
        target = f"/root/{deb.name}"
        self.put(deb, target)
        return self.run(["apt-get", "install", "--yes", "--no-install-recommends", target], timeout=600).stdout

    def journal(self, *units: str, lines: int = 60) -> str:
        """Return the last lines of the journal, of `units` or of all units."""
        chosen = [f"--unit={unit}" for unit in units]
        return self.run(["journalctl", "--no-pager", "--quiet", f"--lines={lines}", *chosen], check=False).stdout

    def failed_units(self) -> str:
        """Return the failed units, one a line, or ""."""
        return self.out("systemctl --failed --plain --no-legend")

    def properties(self, unit: str, *names: str) -> dict[str, str]:
        """Return properties of a unit as `systemctl show` prints them."""
        shown = self.out(["systemctl", "show", f"--property={','.join(names)}", unit])
        return dict(line.split("=", 1) for line in shown.splitlines())

    def model(self, name: str) -> dict[str, str]:
        """Return the state of a model's unit, its result and status, and its main process."""
        return self.properties(f"vllm@{name}.service", "ActiveState", "SubState", "Result", "StatusText", "ExecMainStatus", "MainPID")


def _text(output: str | bytes | None) -> str:
    return output.decode(errors="replace") if isinstance(output, bytes) else output or ""
