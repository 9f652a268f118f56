"""A file whose content is rewritten in place again and again.

A new file and a rename each time would be intact after a power cut, but would cost ext4 some 70 KiB in its journal and tables; this costs
the blocks of the text. A power cut can damage a few lines of a log. Blank lines at the end have no meaning.
"""

from __future__ import annotations

import os

from vllm_safe.contract.small_files import MODE, sync_folder, write_all

_CHUNK = 1 << 14  # bytes: the file seldom grows, since growth goes through the journal of the file system


class RewrittenFile:
    """One file."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._handle = -1
        self._size = self._used = 0

    def write(self, text: bytes) -> None:
        """Write the text to the disk as the whole content. Raises OSError; the next call may succeed."""
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
        """Truncate the rest of the last chunk."""
        if self._handle < 0:
            return
        try:
            os.ftruncate(self._handle, self._used)
        finally:
            os.close(self._handle)
            self._handle = -1
