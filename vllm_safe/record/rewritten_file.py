"""A text that is written anew again and again, over what was there before.

A new file and a rename each time would be whole after a power cut, and cost ext4 some 70 KiB in its journal and tables; this costs the
blocks of the text. What a power cut can spoil is a few lines of a log. Blank lines at the end mean nothing.
"""

from __future__ import annotations

import os

from vllm_safe.contract.small_files import MODE, sync_folder, write_all

_CHUNK = 1 << 14  # bytes: the file seldom grows, since that is what the journal must know


class RewrittenFile:
    """One file. OSError from `write` if it cannot be written; the next time may go well."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._handle = -1
        self._size = self._used = 0

    def write(self, text: bytes) -> None:
        """Have it on the disk, and nothing else."""
        if self._handle < 0:
            self._handle = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, MODE)
            sync_folder(os.path.dirname(self._path))
            self._size = self._used = os.fstat(self._handle).st_size
        while len(text) > self._size:
            write_all(self._handle, b"\n" * _CHUNK, self._size)
            self._size += _CHUNK
        write_all(self._handle, text + b"\n" * (self._used - len(text)), 0)
        self._used = len(text)
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
