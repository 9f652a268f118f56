"""Probes of how the machine feels to a person. Each probe is a thread that appends samples. Standard library only.

A login of a probe is one of sshd without cryptography and PAM: systemd creates a scope in user.slice, the process moves into it and
becomes a login shell, which runs a program that is not in the page cache. So PID 1, fork, exec, the shell's files and the disk all count.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, Self

LOGIN, SSH, GAP, STALL = "login", "ssh", "gap", "stall"
SLICES = ("system.slice", "user.slice", "init.scope")  # the operating system; as in common/kernfs.py, which this file must not import
EVERY = 1.0  # seconds between the beginnings of two logins, unless one takes longer
LONGEST = 120.0  # seconds; sshd's own LoginGraceTime, after which a login has failed

SHELL = Path("/bin/bash")
# This program is essential on Debian, and no program that runs all the time keeps it in RAM.
RARE = Path("/usr/bin/find")
LOGIN_COMMAND = (
    *("systemd-run", "--quiet", "--collect", "--scope", "--slice=user.slice", "--description=vllm-safe drill: a login"),
    # Without the user's own profile files, which must not be run again and again.
    *("env", "-i", "HOME=/nonexistent", "PATH=/usr/bin:/bin", str(SHELL), "-l", "-c", f"exec {RARE} --version"),
)
SSH_COMMAND = (
    *("ssh", "-F", "none", "-o", "BatchMode=yes", "-o", "PreferredAuthentications=publickey", "-o", "LogLevel=ERROR"),
    # To this machine itself, so the host key need not be verified, and nothing is added to known_hosts.
    *("-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "localhost", "true"),
)


class ProbeSample(NamedTuple):
    """One figure. `what` is LOGIN, SSH or GAP (the value is in seconds), or STALL:SLICE (a share of the time, 0 to 1).

    `at` is in seconds since boot: when a login began, or when the `span` seconds ended over which a share was measured.
    """

    at: float
    what: str
    value: float
    span: float = 0.0


def drop_from_cache(path: Path) -> None:
    """Make the kernel drop a program from the page cache, except for pages that some process has mapped."""
    with suppress(OSError):
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(file)


def time_command(command: Sequence[str], *cold: Path) -> float | None:
    """Return the seconds that a command takes when the programs `cold` are not cached, at most LONGEST; None if it failed."""
    for path in cold:
        drop_from_cache(path)
    start = time.monotonic()
    quiet = subprocess.DEVNULL
    try:
        done = subprocess.run(command, stdin=quiet, stdout=quiet, stderr=quiet, timeout=LONGEST, check=False, start_new_session=True)
    except subprocess.TimeoutExpired:
        return LONGEST
    except OSError:
        return None
    return time.monotonic() - start if done.returncode == 0 else None


def time_login() -> float | None:
    """Time one login. Return seconds, or None if it failed."""
    return time_command(LOGIN_COMMAND, SHELL, RARE)


def time_ssh() -> float | None:
    """Time one login over ssh to this machine. Return seconds, or None where no sshd listens or it accepts none of the user's keys."""
    return time_command(SSH_COMMAND)


def system_stalls(unit: str) -> float | None:
    """Return the seconds since boot in which every task in a unit was stalled on memory (PSI, full); None without PSI."""
    try:
        text = Path("/sys/fs/cgroup", unit, "memory.pressure").read_text()
        return int(text.rsplit("total=", 1)[1]) / 1e6  # the last line is "full avg10=... total=MICROSECONDS"
    except (OSError, ValueError, IndexError):
        return None


class LoginWatch:
    """A context manager that takes samples until its end. `samples` can be read at any time. `probes` has the probes by `what`."""

    def __init__(self, probes: dict[str, Callable[[], float | None]]) -> None:
        self.samples: list[ProbeSample] = []
        self.failed: list[ProbeSample] = []  # probes that failed; the time that they took is not that of a login
        self._end = threading.Event()
        self._threads = [threading.Thread(target=self._repeat, args=item, daemon=True) for item in probes.items()]
        self._threads += [threading.Thread(target=work, daemon=True) for work in (self._follow_heart, self._follow_pressure)]
        self._heart: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        beat = [sys.executable, "-I", str(Path(__file__).with_name("heartbeat.py"))]
        pipe = subprocess.PIPE
        self._heart = subprocess.Popen(beat, stdin=pipe, stdout=pipe, text=True, start_new_session=True)
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End the probes, and wait for the login that is running, since it began in the watched time."""
        self._end.set()
        if self._heart and self._heart.stdin:
            self._heart.stdin.close()
            self._heart.wait()
        for thread in self._threads:
            thread.join(LONGEST)
        if self._heart and self._heart.stdout:
            self._heart.stdout.close()

    def last(self, what: str) -> float | None:
        """Return the last value of a kind, or None."""
        return next((sample.value for sample in reversed(self.samples) if sample.what == what), None)

    def worst(self, what: str) -> float | None:
        """Return the largest value of a kind, or None."""
        return max((sample.value for sample in self.samples if sample.what == what), default=None)

    def _repeat(self, what: str, probe: Callable[[], float | None]) -> None:
        while not self._end.is_set():
            start = time.monotonic()
            value = probe()
            if value is None:
                self.failed.append(ProbeSample(start, what, time.monotonic() - start))
            else:
                self.samples.append(ProbeSample(start, what, value))
            self._end.wait(max(0.0, start + EVERY - time.monotonic()))

    def _follow_heart(self) -> None:
        for line in (self._heart and self._heart.stdout) or ():
            self.samples.append(ProbeSample(time.monotonic(), GAP, float(line)))

    def _follow_pressure(self) -> None:
        before = _pressures()
        last = time.monotonic()
        ended = False
        while not ended:
            ended = self._end.wait(EVERY)  # the rest at the end is measured too: it may be when the machine stood still
            now, after = time.monotonic(), _pressures()
            for unit in before.keys() & after.keys():
                share = min(1.0, (after[unit] - before[unit]) / (now - last))
                self.samples.append(ProbeSample(now, f"{STALL}:{unit}", share, now - last))
            before, last = after, now


def _pressures(units: Iterable[str] = SLICES) -> dict[str, float]:
    found = {unit: system_stalls(unit) for unit in units}
    return {unit: seconds for unit, seconds in found.items() if seconds is not None}
