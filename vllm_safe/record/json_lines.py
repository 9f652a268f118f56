"""Files of JSON lines that are appended to for days within a size limit: the beginning is kept for ever, and the end.

STEM.0.jsonl is the beginning. When it is full, STEM.1.jsonl follows, then STEM.2.jsonl and so on; the last two of these are kept.

On a hard disk with swap, each fsync of a growing file waits for the journal of the file system, with the data of all other programs in it.
Hence a file grows by a chunk of newlines, and lines are written over them, which costs one block each time. Blank lines have no meaning.
"""

from __future__ import annotations

import os

from vllm_safe.contract.small_files import MODE, READ, remove_if_possible, write_all

CHUNK = 1 << 16  # bytes


class Lines:
    """One stream of lines in a directory."""

    def __init__(self, folder: str, stem: str, *, head: int, tail: int) -> None:
        self._folder, self._stem = folder, stem
        self._head, self._tail = head, tail
        self._number = max(file_numbers(folder, stem), default=0)
        self._handle = -1
        self._size = self._used = 0

    def write(self, lines: bytes) -> None:
        """Write whole lines to the disk. Raises OSError; the lines are then lost, and the next call may succeed."""
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
        """Truncate the rest of the last chunk."""
        if self._handle < 0:
            return
        try:
            os.ftruncate(self._handle, self._used)
        finally:
            os.close(self._handle)
            self._handle = -1

    def _open(self) -> None:
        """Open the last file at the end of its content: a recorder that was killed continues there."""
        self._handle = os.open(_path(self._folder, self._stem, self._number), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, MODE)
        content = b""
        while more := os.pread(self._handle, 1 << 20, len(content)):
            content += more
        self._size = len(content)
        self._used = len(content.rstrip(b"\n"))
        self._used += 1 if self._used else 0  # a torn line ends here

    def _next(self) -> None:
        self.close()
        self._number += 1
        if self._number > 2:
            remove_if_possible(_path(self._folder, self._stem, self._number - 2))
        self._open()


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
