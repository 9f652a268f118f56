"""Facts about one model's files: where they are, whether all are there.

Root only looks here: the folders belong to user vllm or to anybody. Nothing is opened but regular files (a link planted at
/dev/watchdog would reboot the machine), nothing is written, and no content of a file is ever shown. Below the folder of models, which
is user vllm's, no link is followed either: not even to look, which can take for ever where a network mount hangs. A folder that the
configuration names may be made of links, as a hub's cache is.
"""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from vllm_safe.common import paths
from vllm_safe.common.untrusted_paths import LOOK, open_below

MANIFEST = ".vllm-safe.json"  # written by models/as_engine/hub_download/model_store.py
_INDEX = "model.safetensors.index.json"
_LARGEST = 16 << 20  # bytes of JSON that are read; the largest index there is has 10 MB, and 16 MB may become 400 MB of values


@dataclass(frozen=True)
class ModelFiles:
    """The files of one model. `folder` is where they are, or would be; `problem` says in a few words what is wrong, or is ""."""

    folder: Path
    repo: str = ""  # the hub id; "" for a folder that the config names
    present: bool = False  # the folder is there
    commit: str = ""  # the revision that was fetched
    count: int = 0  # files that belong to that revision
    size: int = 0  # bytes of them
    problem: str = ""
    partial: int = 0  # bytes of a fetch that was broken off

    @property
    def complete(self) -> bool:
        """Nothing that can be told from outside is missing."""
        return self.present and not self.problem


def read_model_files(model: str, models: Path | None = None) -> ModelFiles:
    """The facts about a hub id ORG/NAME, kept below `models` (paths.MODELS), or about the folder with that absolute path."""
    models = models or paths.MODELS
    folder = models / model
    repo = "" if model.startswith("/") else model
    try:
        with _opened(models, model) as place:
            return _judge(place, ModelFiles(folder, repo, present=True))
    except PermissionError as error:  # of a user who may not look: that is not to be told as absence
        raise PermissionError(error.errno, error.strerror, str(folder)) from error
    except OSError as error:
        if repo and error.errno == errno.ELOOP:
            problem = f"a link leads there, and in {models} none is followed (mount it there, or give its own path as the `model`)"
            return ModelFiles(folder, repo, present=True, problem=problem)
        return ModelFiles(folder, repo, partial=_bytes_in(models, f".partial/{repo.replace('/', '--')}/blobs") if repo else 0)


@dataclass(frozen=True)
class _Folder:
    """A folder that is open, to look for files in it by their names."""

    handle: int
    follow: bool  # links too

    def look(self, name: str) -> int:
        """A descriptor of the file, the caller's to close; OSError or ValueError if there is none. No device or pipe is touched."""
        if self.follow:
            return os.open(name, LOOK, dir_fd=self.handle)
        *folders, last = PurePosixPath(name).parts or (".",)
        folder = open_below(self.handle, folders)
        try:
            return os.open(last, LOOK | os.O_NOFOLLOW, dir_fd=folder)
        finally:
            os.close(folder)

    def size(self, name: str) -> int:
        """Bytes of a regular file, or -1; a name that leads out of the folder has none: nobody is told what is elsewhere here."""
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            return -1
        try:
            place = self.look(name)
        except (OSError, ValueError):  # ValueError: a name that no file can have
            return -1
        try:
            status = os.fstat(place)
        finally:
            os.close(place)
        return status.st_size if stat.S_ISREG(status.st_mode) else -1

    def has(self, name: str) -> bool:
        """Whether there is such a file."""
        return self.size(name) >= 0

    def json(self, name: str) -> object:
        """What a file of JSON holds. None if there is none, or it is not a regular file of a sensible size with JSON in it."""
        try:
            place = self.look(name)
        except OSError:
            return None
        try:
            status = os.fstat(place)
            if not stat.S_ISREG(status.st_mode) or status.st_size > _LARGEST:
                return None
            # O_NONBLOCK: with a lease on it (fcntl(2)) its owner could have us wait for 45 s
            with os.fdopen(os.open(f"/proc/self/fd/{place}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
                return json.loads(file.read(_LARGEST))
        except (OSError, ValueError, RecursionError):
            return None
        finally:
            os.close(place)


@contextmanager
def _opened(models: Path, model: str) -> Iterator[_Folder]:
    """The folder of a model. OSError if it is not there; ELOOP if a link stands where user vllm could have put it."""
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


def _judge(place: _Folder, files: ModelFiles) -> ModelFiles:
    manifest = place.json(MANIFEST) if files.repo else None
    return replace(files, problem=_gap(place)) if manifest is None else _fetched(place, files, manifest)


def _fetched(place: _Folder, files: ModelFiles, manifest: object) -> ModelFiles:
    damaged = replace(files, problem=f"its {MANIFEST} is damaged")
    try:
        values: Any = manifest
        commit = str(values["commit"])
        sizes = {str(name): int(row["size"]) for name, row in values["files"].items()}
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):  # OverflowError: JSON as Python reads it has an Infinity
        return damaged
    # The first is printed, and passed on as an argument; the second may be more than any file system holds.
    if not re.fullmatch(r"[\w.-]{1,64}", commit, re.ASCII) or sum(map(abs, sizes.values())) >> 63:
        return damaged
    wrong = [name for name, size in sizes.items() if place.size(name) != size]
    problem = f"{len(wrong)} of its {len(sizes)} files are missing or cut short, {_shown(wrong[0])} for one" if wrong else ""
    return replace(files, commit=commit, count=len(sizes), size=sum(sizes.values()), problem=problem)


def _gap(place: _Folder) -> str:
    """What a folder lacks that nobody here fetched: its own index of weights is all that can be asked."""
    if not any(place.has(name) for name in ("config.json", "params.json")):
        return "it has no config.json"
    index = place.json(_INDEX)
    named = index.get("weight_map") if isinstance(index, dict) else None
    shards = {shard for shard in named.values() if isinstance(shard, str)} if isinstance(named, dict) else set()
    missing = sorted(shard for shard in shards if not place.has(shard))
    return f"{len(missing)} of its {len(shards)} files of weights are missing, {_shown(missing[0])} for one" if missing else ""


def _shown(name: str) -> str:
    """A name that somebody else chose: short, and unable to drive a terminal."""
    return repr(name if len(name) <= 100 else f"{name[:100]}...")


def _bytes_in(models: Path, below: str) -> int:
    try:
        with _opened(models, below) as place:
            folder = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=place.handle)
            try:
                return sum(entry.stat(follow_symlinks=False).st_size for entry in os.scandir(folder))
            finally:
                os.close(folder)
    except OSError:
        return 0
