"""Facts about one model's files: where they are, and whether they are complete.

Root only reads here, since the folders belong to user vllm or to any other user. Only regular files are opened (a link planted at
/dev/watchdog would reboot the machine), nothing is written, and no content of a file is ever shown. Below the folder of models, which
belongs to user vllm, no link is followed, not even to stat it: that can block for ever where a network mount hangs. A folder that the
configuration names may consist of links, as a hub's cache does.
"""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from vllm_safe.common import paths
from vllm_safe.common.untrusted_paths import LOOK, open_below

MANIFEST = ".vllm-safe.json"  # written by models/as_engine/hub_download/model_store.py
_INDEX = "model.safetensors.index.json"
_LARGEST = 16 << 20  # bytes of JSON to read at most: the largest known index has 10 MB, and 16 MB may become 400 MB of values


@dataclass(frozen=True)
class ModelFiles:
    """The files of one model. `folder`: where they are or would be; `problem`: what is wrong, in a few words, or ""."""

    folder: Path
    repo: str = ""  # the hub id; "" for a folder that the configuration names
    present: bool = False  # the folder exists
    commit: str = ""  # the revision that was fetched
    count: int = 0  # number of files of that revision
    size: int = 0  # their total size in bytes
    problem: str = ""
    partial: int = 0  # bytes of an interrupted download

    @property
    def complete(self) -> bool:
        """Whether nothing is missing, as far as that can be checked without reading the weights."""
        return self.present and not self.problem


def read_model_files(model: str, models: Path | None = None) -> ModelFiles:
    """Read the facts about a hub id ORG/NAME, kept below `models` (paths.MODELS), or about the folder with that absolute path."""
    models = models or paths.MODELS
    folder = models / model
    repo = "" if model.startswith("/") else model
    try:
        with _opened(models, model) as opened:
            return _judge(opened, ModelFiles(folder, repo, present=True))
    except PermissionError as error:  # the user lacks permission, which must not be reported as absence
        raise PermissionError(error.errno, error.strerror, str(folder)) from error
    except OSError as error:
        if repo and error.errno == errno.ELOOP:
            problem = f"it is a symbolic link, which is not followed in {models} (mount it there, or set `model` to its own path)"
            return ModelFiles(folder, repo, present=True, problem=problem)
        return ModelFiles(folder, repo, partial=_bytes_in(models, f".partial/{repo.replace('/', '--')}/blobs") if repo else 0)


def read_model_json(model: str, name: str, models: Path | None = None) -> object:
    """Return the value in a JSON file of a model, such as config.json; None if it has none that can be read."""
    with suppress(OSError), _opened(models or paths.MODELS, model) as opened:
        return opened.json(name)
    return None


@dataclass(frozen=True)
class OpenFile:
    """A file that is open with O_DIRECT, past the page cache; whoever has it closes it. total: bytes of all files of its kind."""

    descriptor: int
    name: str
    total: int


def open_largest_file(model: str, models: Path | None = None) -> OpenFile | None:
    """Open the largest regular file of a model, which is a part of its weights; None if there is none, or its file system cannot do it."""
    with suppress(OSError), _opened(models or paths.MODELS, model) as opened:
        sizes = {name: size for name in opened.names() if (size := opened.size(name)) > 0}
        name = max(sizes, key=lambda each: sizes[each], default="")
        if name and (descriptor := opened.open_direct(name)) is not None:
            kind = PurePosixPath(name).suffix
            return OpenFile(descriptor, name, sum(size for each, size in sizes.items() if each.endswith(kind)))
    return None


@dataclass(frozen=True)
class _Folder:
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
        """Return the names in the folder."""
        folder = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self.handle)
        try:
            return [entry.name for entry in os.scandir(folder)]
        finally:
            os.close(folder)

    def open_direct(self, name: str) -> int | None:
        """Open a regular file with O_DIRECT; None if it is no such file, or its file system has no such access."""
        try:
            descriptor = self.look(name)
        except OSError:
            return None
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                return None
            return os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_DIRECT | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return None
        finally:
            os.close(descriptor)

    def has(self, name: str) -> bool:
        """Return whether there is such a regular file."""
        return self.size(name) >= 0

    def json(self, name: str) -> object:
        """Return the value in a JSON file, or None unless it is a regular file of sensible size with valid JSON."""
        try:
            descriptor = self.look(name)
        except OSError:
            return None
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_size > _LARGEST:
                return None
            # O_NONBLOCK: by a lease on the file (fcntl(2)) its owner could block the open for 45 s.
            with os.fdopen(os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
                return json.loads(file.read(_LARGEST))
        except (OSError, ValueError, RecursionError):
            return None
        finally:
            os.close(descriptor)


@contextmanager
def _opened(models: Path, model: str) -> Iterator[_Folder]:
    """Open the folder of a model. Raises OSError if it is missing, with ELOOP for a link where user vllm could have put one."""
    is_path = model.startswith("/")
    top = os.open(model if is_path else models, LOOK | os.O_DIRECTORY)
    try:
        handle = top if is_path else open_below(top, model.split("/"))
    except OSError:
        os.close(top)
        raise
    try:
        yield _Folder(handle, follow=is_path)
    finally:
        for descriptor in {top, handle}:
            os.close(descriptor)


def _judge(folder: _Folder, files: ModelFiles) -> ModelFiles:
    manifest = folder.json(MANIFEST) if files.repo else None
    return replace(files, problem=_gap(folder)) if manifest is None else _fetched(folder, files, manifest)


def _fetched(folder: _Folder, files: ModelFiles, manifest: object) -> ModelFiles:
    damaged = replace(files, problem=f"its {MANIFEST} is damaged")
    try:
        values: Any = manifest
        commit = str(values["commit"])
        sizes = {str(name): int(row["size"]) for name, row in values["files"].items()}
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):  # OverflowError: Python's JSON parser accepts Infinity
        return damaged
    # The commit is printed and passed on as an argument. The sizes may add up to more than any file system holds.
    if not re.fullmatch(r"[\w.-]{1,64}", commit, re.ASCII) or sum(map(abs, sizes.values())) >> 63:
        return damaged
    wrong = [name for name, size in sizes.items() if folder.size(name) != size]
    problem = f"{len(wrong)} of its {len(sizes)} files are missing or truncated, such as {_shown(wrong[0])}" if wrong else ""
    return replace(files, commit=commit, count=len(sizes), size=sum(sizes.values()), problem=problem)


def _gap(folder: _Folder) -> str:
    """Return what is missing in a folder that vllm-safe did not fetch, as far as its own index of weights shows, or ""."""
    if not any(folder.has(name) for name in ("config.json", "params.json")):
        return "it has no config.json"
    index = folder.json(_INDEX)
    named = index.get("weight_map") if isinstance(index, dict) else None
    shards = {shard for shard in named.values() if isinstance(shard, str)} if isinstance(named, dict) else set()
    missing = sorted(shard for shard in shards if not folder.has(shard))
    return f"{len(missing)} of its {len(shards)} weight files are missing, such as {_shown(missing[0])}" if missing else ""


def _shown(name: str) -> str:
    """Return a name that another user chose, shortened and without control characters."""
    return repr(name if len(name) <= 100 else f"{name[:100]}...")


def _bytes_in(models: Path, subfolder: str) -> int:
    try:
        with _opened(models, subfolder) as opened:
            folder = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=opened.handle)
            try:
                return sum(entry.stat(follow_symlinks=False).st_size for entry in os.scandir(folder))
            finally:
                os.close(folder)
    except OSError:
        return 0
