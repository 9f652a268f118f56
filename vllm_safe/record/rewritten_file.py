"""A file whose content is rewritten in place again and again.

A new file and a rename each time would be intact after a power cut, but would cost ext4 some 70 KiB in its journal and tables; this costs
the blocks of the text. A power cut can damage a few lines of a log.
"""

from __future__ import annotations

import os

from vllm_safe.contract.small_files import sync_folder
from vllm_safe.record.padded_file import PaddedFile

_CHUNK = 1 << 14  # bytes: the file seldom grows, since growth goes through the journal of the file system


class RewrittenFile:
    """One file."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._file: PaddedFile | None = None

    def write(self, text: bytes) -> None:
        """Write the text to the disk as the whole content. Raises OSError; the next call may succeed."""
        if not self._file:
            self._file = PaddedFile(self._path, _CHUNK)
            sync_folder(os.path.dirname(self._path))
        self._file.write(text, 0)

    def close(self) -> None:
        """Close the file. Raises OSError."""
        file, self._file = self._file, None
        if file:
            file.close()
