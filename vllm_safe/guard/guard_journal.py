"""Words of the guard: to the journal, where `systemctl status` of the model shows them, and to the model's own file of events.

Datagrams that do not wait: a journal that stands still must not make the guard stand still.
"""

from __future__ import annotations

import socket
import time
from contextlib import suppress

from vllm_safe.contract.guard_file import EVENTS_FOLDER
from vllm_safe.contract.small_files import write_whole
from vllm_safe.guard.guard_decision import GuardAction

JOURNAL = "/run/systemd/journal/socket"
MOST_LINES, KEPT_LINES = 500, 250  # of a file of events: once it has the most, the oldest go
INFO, WARNING, ERROR = 6, 4, 3
_LEVELS = {"kill": ERROR, "freeze": WARNING, "squeeze": WARNING}


class Journal:
    """Says what is done."""

    def __init__(self, folder: str = EVENTS_FOLDER, address: str = JOURNAL) -> None:
        self._folder, self._address = folder, address
        self._lines: dict[str, int] = {}  # in the files of events, by path

    def say(self, text: str, level: int = INFO, unit: str = "") -> None:
        """One line; with `unit`, one that `systemctl status UNIT` shows too: journalctl takes root's word for this field."""
        fields = {"MESSAGE": " ".join(text.split()), "PRIORITY": str(level), "SYSLOG_IDENTIFIER": "vllm-safe-guard"}
        if unit:
            fields["OBJECT_SYSTEMD_UNIT"] = unit
        message = "".join(f"{key}={value}\n" for key, value in fields.items())
        kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        with suppress(OSError), socket.socket(socket.AF_UNIX, kind) as channel:  # full, or not there: what was done is more than words
            channel.sendto(message.encode(), self._address)

    def record(self, act: GuardAction) -> None:
        """One act, with the readings that led to it."""
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
    """The act as one line of JSON, without its module: see plan.py."""
    readings = ", ".join(f"{_quoted(key)}: {value:g}" for key, value in act.readings.items())
    return f'{{"time": {now:.3f}, "act": {_quoted(act.kind)}, "text": {_quoted(act.text)}, "readings": {{{readings}}}}}\n'


def _quoted(text: str) -> str:
    plain = "".join(char if char.isprintable() else "?" for char in text)
    return '"' + plain.replace("\\", "\\\\").replace('"', '\\"') + '"'


def model_name(unit: str) -> str:
    """The model's name, of vllm@NAME.service; of any other unit, what is before its suffix."""
    return unit.removeprefix("vllm@").rpartition(".")[0]


def _lines_of(path: str) -> list[bytes]:
    try:
        with open(path, "rb") as file:  # noqa: PTH123
            return file.readlines()
    except FileNotFoundError:
        return []
