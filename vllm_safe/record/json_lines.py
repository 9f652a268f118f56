"""Files of JSON lines that are appended to for days within a size limit: the beginning is kept for ever, and the end.

STEM.0.jsonl is the beginning. When it is full, STEM.1.jsonl follows, then STEM.2.jsonl and so on; the last two of these are kept.
"""

from __future__ import annotations

import os

from vllm_safe.contract.small_files import READ, remove_if_possible
from vllm_safe.record.padded_file import PaddedFile

CHUNK = 1 << 16  # bytes


class Lines:
    """One stream of lines in a directory."""

    def __init__(self, folder: str, stem: str, *, head: int, tail: int) -> None:
        self._folder, self._stem = folder, stem
        self._head, self._tail = head, tail
        self._number = max(file_numbers(folder, stem), default=0)
        self._file: PaddedFile | None = None

    def write(self, lines: bytes) -> None:
        """Write whole lines to the disk. Raises OSError; the lines are then lost, and the next call may succeed."""
        file = self._file or self._open()
        if file.used and file.used + len(lines) > (self._tail if self._number else self._head):
            file = self._next()
        file.write(lines, file.used)

    def close(self) -> None:
        """Close the last file. Raises OSError."""
        file, self._file = self._file, None
        if file:
            file.close()

    def _open(self) -> PaddedFile:
        """Open the last file at the end of its content: a recorder that was killed continues there."""
        self._file = PaddedFile(_path(self._folder, self._stem, self._number), CHUNK)
        self._file.find_end()
        return self._file

    def _next(self) -> PaddedFile:
        self.close()
        self._number += 1
        if self._number > 2:
            remove_if_possible(_path(self._folder, self._stem, self._number - 2))
        return self._open()


def read_lines(folder: str, stem: str, most: int) -> list[bytes]:
    """Read the lines of all files in order, at most `most` bytes of each file. Raises OSError."""
    found: list[bytes] = []
    for number in sorted(file_numbers(folder, stem)):
        with os.fdopen(os.open(_path(folder, stem, number), READ), "rb") as file:
            found += [line for line in file.read(most).split(b"\n") if line]
    return found


def file_numbers(folder: str, stem: str) -> list[int]:
    """Return the numbers of the existing files; none if the directory does not exist."""
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    parts = [name.split(".") for name in names if name.endswith(".jsonl")]
    return [int(part[1]) for part in parts if len(part) == 3 and part[0] == stem and part[1].isdecimal()]


def _path(folder: str, stem: str, number: int) -> str:
    return f"{folder}/{stem}.{number}.jsonl"
