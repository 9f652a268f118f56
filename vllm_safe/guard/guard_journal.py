"""The messages of the guard: to the journal, where `systemctl status` of the model shows them, and to the model's own file of events.

Datagrams are sent without blocking: a stalled journal must not stall the guard.
"""

from __future__ import annotations

import socket
import time
from contextlib import suppress

from vllm_safe.contract.guard_file import EVENTS_FOLDER
from vllm_safe.contract.small_files import write_whole
from vllm_safe.guard.guard_decision import GuardAction

JOURNAL = "/run/systemd/journal/socket"
MOST_LINES, KEPT_LINES = 500, 250  # of a file of events: when it reaches the first number, only the newest lines are kept
INFO, WARNING, ERROR = 6, 4, 3
_LEVELS = {"kill": ERROR, "freeze": WARNING, "squeeze": WARNING}


class Journal:
    """A writer of messages and events."""

    def __init__(self, folder: str = EVENTS_FOLDER, address: str = JOURNAL) -> None:
        self._folder, self._address = folder, address
        self._lines: dict[str, int] = {}  # the number of lines in each file of events, by path

    def say(self, text: str, level: int = INFO, unit: str = "") -> None:
        """Log one line. With `unit`, `systemctl status UNIT` shows it too: journalctl trusts this field if the sender is root."""
        fields = {"MESSAGE": " ".join(text.split()), "PRIORITY": str(level), "SYSLOG_IDENTIFIER": "vllm-safe-guard"}
        if unit:
            fields["OBJECT_SYSTEMD_UNIT"] = unit
        message = "".join(f"{key}={value}\n" for key, value in fields.items())
        kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        with (
            suppress(OSError),
            socket.socket(socket.AF_UNIX, kind) as channel,
        ):  # the socket is full or does not exist: an action must not fail because of its message
            channel.sendto(message.encode(), self._address)

    def record(self, act: GuardAction) -> None:
        """Log an action and write it to the file of events, with the readings that led to it."""
        figures = ", ".join(f"{key} {value:g}" for key, value in act.readings.items() if value)
        self.say(f"{act.unit} {act.text}" + (f" ({figures})" if figures else ""), _LEVELS.get(act.kind, INFO), act.unit)
        try:
            self._append(f"{self._folder}/{model_name(act.unit)}.jsonl", event_line(act, time.time()))
        except OSError as error:
            self.say(f"cannot write the events of {act.unit}: {error}", WARNING)

    def _append(self, path: str, line: str) -> None:
        if path not in self._lines:
            self._lines[path] = len(_lines_of(path))
        if self._lines[path] >= MOST_LINES:
            kept = _lines_of(path)[-KEPT_LINES:]
            write_whole(path, b"".join(kept), 0o644, sync=False)
            self._lines[path] = len(kept)
        with open(path, "ab") as file:  # noqa: PTH123 - pathlib is 2 MB
            file.write(line.encode())
        self._lines[path] += 1


def event_line(act: GuardAction, now: float) -> str:
    """Return the action as one line of JSON, without the json module: see contract/guard_file.py."""
    readings = ", ".join(f"{_quoted(key)}: {value:g}" for key, value in act.readings.items())
    return f'{{"time": {now:.3f}, "act": {_quoted(act.kind)}, "text": {_quoted(act.text)}, "readings": {{{readings}}}}}\n'


def _quoted(text: str) -> str:
    plain = "".join(char if char.isprintable() else "?" for char in text)
    return '"' + plain.replace("\\", "\\\\").replace('"', '\\"') + '"'


def model_name(unit: str) -> str:
    """Return the name of the model for vllm@NAME.service; for any other unit, its name without the suffix."""
    return unit.removeprefix("vllm@").rpartition(".")[0]


def _lines_of(path: str) -> list[bytes]:
    try:
        with open(path, "rb") as file:  # noqa: PTH123
            return file.readlines()
    except FileNotFoundError:
        return []
