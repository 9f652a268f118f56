"""The files of runs: /var/lib/vllm-safe/runs/NAME/RUN/, at most 5 MB for each run, and 20 runs for each model.

start.json      the facts at the start
samples.N.jsonl the samples: see record/json_lines.py
events.N.jsonl  the events
log.txt         the last lines that the server printed
end.json        the end; missing while the run goes on, and for ever if the machine went down during the run
"""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Sequence
from contextlib import suppress

from vllm_safe.contract.recorded_run import End, Event, Sample, Start
from vllm_safe.contract.run_encoding import pack_sample, to_line
from vllm_safe.contract.small_files import remove_if_possible, sync_folder, write_whole
from vllm_safe.record.json_lines import Lines
from vllm_safe.record.rewritten_file import RewrittenFile

MOST_RUNS = 20  # for each model
_STAMP = "%Y%m%dT%H%M%S"
RUN_ID = re.compile(r"[0-9]{8}T[0-9]{6}-[0-9a-f]{8}")

# Together 4.6 MB. A sample has about 200 bytes, and 45 more for each GPU: the beginning holds two hours of samples, one each second, and
# with eight GPUs 45 minutes.
SAMPLES_HEAD, SAMPLES_TAIL = 1_500_000, 1_000_000  # bytes; two tails
EVENTS_HEAD, EVENTS_TAIL = 256_000, 256_000
LOG_MOST = 200_000
SMALL_MOST = 64_000  # for start.json and end.json each
_HELD_MOST = 64_000  # bytes of lines in memory while the disk is full
_FULL = {errno.ENOSPC, errno.EDQUOT}


def run_id(at: float, invocation: str, before: Sequence[str] = ()) -> str:
    """Name a run: it sorts after the runs `before` it, whatever the clock says, and names the start as systemd does.

    `at` is Unix time. Where it is not later than the latest name (a machine without a clock of its own starts in the past), the name is
    that of a second after it.
    """
    stamp = time.strftime(_STAMP, time.gmtime(at))
    latest = max((run.partition("-")[0] for run in before), default="")
    if stamp <= latest:
        from calendar import timegm  # noqa: PLC0415 - memory, as strptime, that is only needed if the clock was set back

        with suppress(ValueError):  # a directory that the recorder did not make
            stamp = time.strftime(_STAMP, time.gmtime(timegm(time.strptime(latest, _STAMP)) + 1))
    return f"{stamp}-{invocation[:8]}"


def open_run(folder: str, name: str, invocation: str) -> str | None:
    """Return the run of this invocation that has no end yet, or None: a recorder that was killed continues it."""
    runs = [run for run in run_names(folder, name) if run.endswith(f"-{invocation[:8]}")]
    return next((run for run in runs if not os.path.exists(f"{folder}/{name}/{run}/end.json")), None)


def run_names(folder: str, name: str) -> list[str]:
    """Return the runs of a model, newest first."""
    try:
        return sorted((run for run in os.listdir(f"{folder}/{name}") if RUN_ID.fullmatch(run)), reverse=True)
    except (FileNotFoundError, NotADirectoryError):
        return []


class RunStore:
    """The writer of one run. If the disk is full for a while, only the data of that time is lost."""

    def __init__(self, folder: str, name: str, run: str) -> None:
        self._runs, self._name, self._run = folder, name, run
        self._folder = f"{folder}/{name}/{run}"
        self._small: dict[str, bytes] = {}
        self._held = {"samples": b"", "events": b""}
        self._lines: dict[str, Lines] = {}
        self._log: bytes | None = None
        self._page = RewrittenFile(f"{self._folder}/log.txt")

    def start(self, start: Start) -> None:
        """Store the facts at the start. If the arguments are too long, they are left out."""
        line = to_line(start._asdict()).encode(errors="replace")
        self._small["start.json"] = line if len(line) <= SMALL_MOST else to_line(start._replace(args={})._asdict()).encode(errors="replace")

    def sample(self, sample: Sample) -> None:
        """Store a sample."""
        self._hold("samples", to_line(pack_sample(sample)))

    def event(self, event: Event) -> None:
        """Store an event."""
        self._hold("events", to_line(event._asdict()))

    def log(self, lines: tuple[str, ...]) -> None:
        """Store the last lines that the server printed, in place of the previous ones."""
        content = "".join(" ".join(line.splitlines()) + "\n" for line in lines).encode(errors="replace")
        self._log = content[-LOG_MOST:]

    def end(self, end: End) -> None:
        """Store the end."""
        self._small["end.json"] = to_line(end._asdict()).encode(errors="replace")

    def flush(self) -> str:
        """Write all stored data to the disk. Return the problem in one line, or "". On a full disk, older runs are removed first."""
        while True:
            try:
                self._write()
            except OSError as error:
                if error.errno in _FULL and self._drop_oldest():
                    continue
                for stem, lines in self._held.items():
                    self._held[stem] = lines[-_HELD_MOST:].partition(b"\n")[2] if len(lines) > _HELD_MOST else lines
                return f"cannot write to {self._folder}: {error.strerror}"
            return ""

    def close(self) -> str:
        """Flush, and truncate the unused space. Return the problem in one line, or ""."""
        problem = self.flush()
        files: tuple[Lines | RewrittenFile, ...] = (*self._lines.values(), self._page)
        for file in files:
            try:
                file.close()
            except OSError as error:
                problem = problem or f"cannot write to {self._folder}: {error.strerror}"
        self._lines.clear()
        return problem

    def _hold(self, stem: str, line: str) -> None:
        self._held[stem] += line.encode(errors="replace")

    def _write(self) -> None:
        if not self._lines:
            self._open()
        for name in [name for name in self._small if name != "end.json"]:
            self._write_small(name)
        for stem, lines in self._lines.items():
            if held := self._held[stem]:
                lines.write(held)
                self._held[stem] = b""
        if self._log is not None:
            self._page.write(self._log)
            self._log = None
        if "end.json" in self._small:  # written last, so that a run with an end is complete
            self._write_small("end.json")

    def _write_small(self, name: str) -> None:
        write_whole(f"{self._folder}/{name}", self._small[name])
        del self._small[name]

    def _open(self) -> None:
        if not os.path.isdir(self._folder):
            os.makedirs(self._folder, 0o750)
            sync_folder(f"{self._runs}/{self._name}")
            sync_folder(self._runs)
        for run in run_names(self._runs, self._name)[MOST_RUNS:]:
            if run != self._run:
                _remove_run(f"{self._runs}/{self._name}/{run}")
        self._lines = {
            "samples": Lines(self._folder, "samples", head=SAMPLES_HEAD, tail=SAMPLES_TAIL),
            "events": Lines(self._folder, "events", head=EVENTS_HEAD, tail=EVENTS_TAIL),
        }

    def _drop_oldest(self) -> bool:
        """Remove the oldest run; return whether one was removed. The previous run is kept: somebody may ask why it ended."""
        others = [run for run in run_names(self._runs, self._name) if run != self._run][1:]
        return bool(others) and _remove_run(f"{self._runs}/{self._name}/{others[-1]}")


def _remove_run(folder: str) -> bool:
    """Remove a run, which contains no directories; return whether that succeeded."""
    try:
        for name in os.listdir(folder):
            remove_if_possible(f"{folder}/{name}")
        os.rmdir(folder)
    except OSError:
        return False
    return True
