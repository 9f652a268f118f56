"""A file that grows by chunks of newlines, over which its content is written.

On a hard disk with swap, each fsync of a growing file waits for the journal of the file system, with the data of all other programs in it.
Writing over newlines costs the blocks of the content alone. Blank lines at the end of the file have no meaning.
"""

from __future__ import annotations

import os

from vllm_safe.contract.small_files import MODE, write_all


class PaddedFile:
    """One open file, created if it does not exist. The constructor raises OSError."""

    def __init__(self, path: str, chunk: int) -> None:
        self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, MODE)
        self._chunk = chunk  # bytes
        self._size = self.used = os.fstat(self._handle).st_size  # used: bytes of content, in front of the newlines

    def find_end(self) -> None:
        """Read the file, and let its content end after the last line that is not blank. Raises OSError."""
        content = b""
        while more := os.pread(self._handle, 1 << 20, len(content)):
            content += more
        self._size = len(content)
        self.used = len(content.rstrip(b"\n"))
        self.used += 1 if self.used else 0  # a torn line ends here

    def write(self, content: bytes, offset: int) -> None:
        """Write `content` to the disk, as the end of the file's content. Raises OSError; the next call may succeed."""
        end = offset + len(content)
        while end > self._size:
            write_all(self._handle, b"\n" * self._chunk, self._size)
            self._size += self._chunk
        write_all(self._handle, content + b"\n" * (self.used - end), offset)
        self.used = end
        os.fdatasync(self._handle)

    def close(self) -> None:
        """Truncate the rest of the last chunk. The file is closed even if that raises OSError."""
        try:
            os.ftruncate(self._handle, self.used)
        finally:
            os.close(self._handle)
