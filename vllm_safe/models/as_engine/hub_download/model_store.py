"""The folders of one model. They belong to the user that runs this program; root only reads them (vllm_safe/models/model_files.py).

MODELS/.partial/ORG--NAME/blobs/HASH              a complete file with that hash
MODELS/.partial/ORG--NAME/blobs/HASH.incomplete   the part of it that was received
MODELS/.partial/ORG--NAME/tree                    the model, made of hard links to the blobs, about to be renamed to ...
MODELS/ORG/NAME                                   ... the final folder, with MANIFEST, which lists its files
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .hub import MANIFEST, RepositoryFile
from .hub_trouble import HubTrouble

_RENAME_EXCHANGE, _AT_FDCWD = 2, -100  # linux/fs.h, linux/fcntl.h


class ModelStore:
    """One model below the folder `models`."""

    def __init__(self, models: Path, repo: str) -> None:
        self.final = models / repo
        self._partial = models / ".partial" / repo.replace("/", "--")
        self._blobs = self._partial / "blobs"
        self._tree = self._partial / "tree"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Create the folders and lock them against other processes."""
        self._blobs.mkdir(parents=True, exist_ok=True)
        handle = os.open(self._partial, os.O_RDONLY | os.O_DIRECTORY)
        try:
            _take(handle)
            yield
        finally:
            os.close(handle)

    def blob(self, file: RepositoryFile) -> Path:
        """Return the path of the complete file, named by its hash."""
        return self._blobs / file.key.replace(":", "-")

    def part(self, file: RepositoryFile) -> Path:
        """Return the path of the part of a file that was received."""
        return self._blobs / (file.key.replace(":", "-") + ".incomplete")

    def has(self, file: RepositoryFile) -> bool:
        """Return whether the file is complete."""
        return size_of(self.blob(file)) == file.size

    def bytes_here(self, file: RepositoryFile, in_place: dict[str, Path]) -> int:
        """Return the bytes of a file that need no transfer. in_place: the value of `files_in_place`."""
        if file.key in in_place or self.has(file):
            return file.size
        part = size_of(self.part(file))
        return part if 0 <= part <= file.size else 0

    def files_in_place(self) -> dict[str, Path]:
        """Return the files of the revision in place, by key; {} if there is none, or it was not fetched by this program."""
        try:
            rows = json.loads((self.final / MANIFEST).read_text())["files"]
            return {row["key"]: self.final / name for name, row in rows.items() if size_of(self.final / name) == row["size"]}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}

    def prepare(self, files: list[RepositoryFile]) -> None:
        """Reuse files that the revision in place has in common with these, and delete what an earlier run left of other files."""
        wanted = {path.name for file in files for path in (self.blob(file), self.part(file))}
        for path in self._blobs.iterdir():
            if path.name not in wanted:
                path.unlink()
        in_place = self.files_in_place()
        for file in files:
            if file.key in in_place and not self.has(file):
                self.blob(file).unlink(missing_ok=True)
                os.link(in_place[file.key], self.blob(file))

    def put_in_place(self, commit: str, files: list[RepositoryFile]) -> None:
        """Build the tree and rename it to its place. A revision in place is exchanged atomically, and then deleted."""
        shutil.rmtree(self._tree, ignore_errors=True)
        for file in files:
            path = self._tree / file.name
            path.parent.mkdir(parents=True, exist_ok=True)
            os.link(self.blob(file), path)
        rows = {file.name: {"size": file.size, "key": file.key} for file in files}
        (self._tree / MANIFEST).write_text(json.dumps({"commit": commit, "files": rows}, indent=1) + "\n")
        for path in (self._tree / MANIFEST, self._tree, *(path for path in self._tree.rglob("*") if path.is_dir())):
            _sync(path)
        self.final.parent.mkdir(exist_ok=True)
        if os.path.lexists(self.final):
            _exchange(self._tree, self.final)
        else:
            self._tree.rename(self.final)
        _sync(self.final.parent)
        shutil.rmtree(self._partial)


def _take(handle: int) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise HubTrouble("locked") from None


def _sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def size_of(path: Path) -> int:
    """Return the size in bytes, or -1 if there is no such file."""
    try:
        return path.lstat().st_size
    except OSError:
        return -1


def _exchange(one: Path, other: Path) -> None:
    """Exchange two paths atomically, so that `other` is never missing. Python has no function for it."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(other))
