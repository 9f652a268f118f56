"""Lines of JSON that are appended for days and keep to a size: their beginning for ever, and the end of them.

STEM.0.jsonl is the beginning. When it is full STEM.1.jsonl follows, then STEM.2.jsonl and so on; of these the last two stay.

On a hard disk under swap each fsync of a growing file waits for the file system's journal, with all that others have in it. Hence a file
grows by a chunk of newlines, and lines are written over them, where they cost one block each time. Blank lines mean nothing.
"""

from __future__ import annotations

import os

from vllm_safe.record.files import MODE, READ, remove, write_all

CHUNK = 1 << 16  # bytes


class Lines:
    """One stream of lines in a folder. OSError from `write` if they cannot be written; they are then lost, and the next may go well."""

    def __init__(self, folder: str, stem: str, *, head: int, tail: int) -> None:
        self._folder, self._stem = folder, stem
        self._head, self._tail = head, tail
        self._number = max(numbers(folder, stem), default=0)
        self._handle = -1
        self._size = self._used = 0

    def write(self, lines: bytes) -> None:
        """Write whole lines and have them on the disk."""
        if self._handle < 0:
            self._open()
        if self._used and self._used + len(lines) > (self._tail if self._number else self._head):
            self._next()
        while self._used + len(lines) > self._size:
            write_all(self._handle, b"\n" * CHUNK, self._size)
            self._size += CHUNK
        write_all(self._handle, lines, self._used)
        self._used += len(lines)
        os.fdatasync(self._handle)

    def close(self) -> None:
        """Give back what is left of the last chunk."""
        if self._handle < 0:
            return
        try:
            os.ftruncate(self._handle, self._used)
        finally:
            os.close(self._handle)
            self._handle = -1

    def _open(self) -> None:
        """The last file, after what is in it: a recorder that was killed goes on where it was."""
        self._handle = os.open(_path(self._folder, self._stem, self._number), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, MODE)
        content = b""
        while more := os.pread(self._handle, 1 << 20, len(content)):
            content += more
        self._size = len(content)
        self._used = len(content.rstrip(b"\n"))
        self._used += 1 if self._used else 0  # a line that was torn ends here

    def _next(self) -> None:
        self.close()
        self._number += 1
        if self._number > 2:
            remove(_path(self._folder, self._stem, self._number - 2))
        self._open()


def read_lines(folder: str, stem: str, most: int) -> list[bytes]:
    """The lines of all files there are, in order; of each file at most so many bytes. OSError if they cannot be read."""
    found: list[bytes] = []
    for number in sorted(numbers(folder, stem)):
        with os.fdopen(os.open(_path(folder, stem, number), READ), "rb") as file:
            found += [line for line in file.read(most).split(b"\n") if line]
    return found


def numbers(folder: str, stem: str) -> list[int]:
    """Of the files there are; none if the folder is not there."""
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    parts = [name.split(".") for name in names if name.endswith(".jsonl")]
    return [int(part[1]) for part in parts if len(part) == 3 and part[0] == stem and part[1].isdecimal()]


def _path(folder: str, stem: str, number: int) -> str:
    return f"{folder}/{stem}.{number}.jsonl"
