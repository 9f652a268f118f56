"""Access to the files of a model, in a folder that belongs to user vllm or to any other user.

Only regular files are opened (a link planted at /dev/watchdog would reboot the machine). Below the folder of models, which belongs to
user vllm, no link is followed, not even to stat it: that can block for ever where a network mount hangs. A folder that the configuration
names may consist of links, as a hub's cache does.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath

from vllm_safe.common.untrusted_paths import LOOK, open_below

INDEX = "model.safetensors.index.json"  # which of several files has which tensor
_LARGEST = 16 << 20  # bytes of JSON to read at most: the largest known index has 10 MB, and 16 MB may become 400 MB of values


@dataclass(frozen=True)
class ModelFolder:
    """An open folder, in which files are looked up by name."""

    handle: int
    follow: bool  # whether links are followed

    def look(self, name: str) -> int:
        """Return an O_PATH descriptor of the file, which the caller closes. Opens no device and no pipe.

        Raises OSError or ValueError if there is no such file.
        """
        if self.follow:
            return os.open(name, LOOK, dir_fd=self.handle)
        *folders, last = PurePosixPath(name).parts or (".",)
        folder = open_below(self.handle, folders)
        try:
            return os.open(last, LOOK | os.O_NOFOLLOW, dir_fd=folder)
        finally:
            os.close(folder)

    def size(self, name: str) -> int:
        """Return the bytes of a regular file, or -1.

        A name that leads out of the folder yields -1 as well, so that nothing about files elsewhere is revealed.
        """
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            return -1
        try:
            descriptor = self.look(name)
        except (OSError, ValueError):  # ValueError: a name that no file can have
            return -1
        try:
            status = os.fstat(descriptor)
        finally:
            os.close(descriptor)
        return status.st_size if stat.S_ISREG(status.st_mode) else -1

    def names(self) -> list[str]:
        """Return the names in the folder, at most 10,000 of them. Raises OSError."""
        folder = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self.handle)
        try:
            with os.scandir(folder) as entries:
                return [entry.name for entry in islice(entries, 10_000)]
        finally:
            os.close(folder)

    def has(self, name: str) -> bool:
        """Return whether there is such a regular file."""
        return self.size(name) >= 0

    def open(self, name: str, flags: int = 0) -> int:
        """Open a regular file for reading, with more `flags`, and return its descriptor, which the caller closes.

        Raises OSError, also for any other file.
        """
        looked = self.look(name)
        try:
            if not stat.S_ISREG(os.fstat(looked).st_mode):
                raise OSError(errno.EINVAL, "it is not a regular file", name)
            # O_NONBLOCK: by a lease on the file (fcntl(2)) its owner could block the open for 45 s.
            return os.open(f"/proc/self/fd/{looked}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | flags)
        finally:
            os.close(looked)

    def head(self, name: str, count: int) -> bytes:
        """Return the first bytes of a regular file, at most `count`. Raises OSError, also for any other file."""
        with os.fdopen(self.open(name), "rb") as file:
            return file.read(count)

    def json(self, name: str) -> object:
        """Return the value in a JSON file, or None unless it is a regular file of sensible size with valid JSON."""
        try:
            with os.fdopen(self.open(name), "rb") as file:
                content = file.read(_LARGEST + 1)
            return json.loads(content) if len(content) <= _LARGEST else None
        except (OSError, ValueError, RecursionError):
            return None


@contextmanager
def open_model_folder(models: Path, model: str) -> Iterator[ModelFolder]:
    """Open the folder of a model. Raises OSError if it is missing, with ELOOP for a link where user vllm could have put one."""
    is_path = model.startswith("/")
    top = os.open(model if is_path else models, LOOK | os.O_DIRECTORY)
    try:
        handle = top if is_path else open_below(top, model.split("/"))
    except OSError:
        os.close(top)
        raise
    try:
        yield ModelFolder(handle, follow=is_path)
    finally:
        for descriptor in {top, handle}:
            os.close(descriptor)
