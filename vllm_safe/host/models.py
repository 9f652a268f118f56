"""Facts about one model's files: where they are, whether all are there.

Root only looks here: the folders belong to user vllm or to anybody. Nothing is opened but regular files (a link planted at
/dev/watchdog would reboot the machine), nothing is written, and no content of a file is ever shown.
"""

from __future__ import annotations

import json
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from vllm_safe import paths

MANIFEST = ".vllm-safe.json"  # written by apply/as_engine/hub_download/store.py
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


def read_model(model: str, models: Path | None = None) -> ModelFiles:
    """The facts about a hub id ORG/NAME, kept below `models` (paths.MODELS), or about the folder with that absolute path."""
    models = models or paths.MODELS
    folder = models / model
    repo = "" if model.startswith("/") else model
    if not folder.is_dir():
        return ModelFiles(folder, repo, partial=_bytes_in(models / ".partial" / repo.replace("/", "--") / "blobs") if repo else 0)
    manifest = _read_json(folder / MANIFEST)
    if repo and manifest is not None:
        return _fetched(folder, repo, manifest)
    return ModelFiles(folder, repo, present=True, problem=_gap(folder))


def _fetched(folder: Path, repo: str, manifest: object) -> ModelFiles:
    damaged = ModelFiles(folder, repo, present=True, problem=f"its {MANIFEST} is damaged")
    try:
        values: Any = manifest
        commit = str(values["commit"])
        sizes = {str(name): int(row["size"]) for name, row in values["files"].items()}
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):  # OverflowError: JSON as Python reads it has an Infinity
        return damaged
    # The first is printed, and passed on as an argument; the second may be more than any file system holds.
    if not re.fullmatch(r"[\w.-]{1,64}", commit, re.ASCII) or sum(map(abs, sizes.values())) >> 63:
        return damaged
    wrong = [name for name, size in sizes.items() if _size(folder, name) != size]
    problem = f"{len(wrong)} of its {len(sizes)} files are missing or cut short, {_shown(wrong[0])} for one" if wrong else ""
    return ModelFiles(folder, repo, present=True, commit=commit, count=len(sizes), size=sum(sizes.values()), problem=problem)


def _gap(folder: Path) -> str:
    """What a folder lacks that nobody here fetched: its own index of weights is all that can be asked."""
    if not any((folder / name).is_file() for name in ("config.json", "params.json")):
        return "it has no config.json"
    index = _read_json(folder / _INDEX)
    named = index.get("weight_map") if isinstance(index, dict) else None
    shards = {shard for shard in named.values() if isinstance(shard, str)} if isinstance(named, dict) else set()
    missing = sorted(shard for shard in shards if not _has(folder, shard))
    return f"{len(missing)} of its {len(shards)} files of weights are missing, {_shown(missing[0])} for one" if missing else ""


def _shown(name: str) -> str:
    """A name that somebody else chose: short, and unable to drive a terminal."""
    return repr(name if len(name) <= 100 else f"{name[:100]}...")


def _leads_out(name: str) -> bool:
    path = PurePosixPath(name)
    return path.is_absolute() or ".." in path.parts


def _has(folder: Path, name: str) -> bool:
    """Whether there is such a file, also behind a link; nobody is told by a name what is elsewhere on this machine."""
    try:
        return not _leads_out(name) and (folder / name).is_file()
    except OSError:  # a name that is too long
        return False


def _size(folder: Path, name: str) -> int:
    """Bytes of a regular file, or -1; a name that leads out of the folder has none."""
    if _leads_out(name):
        return -1
    try:
        status = (folder / name).lstat()
    except (OSError, ValueError):
        return -1
    return status.st_size if stat.S_ISREG(status.st_mode) else -1


def _bytes_in(folder: Path) -> int:
    try:
        return sum(entry.stat(follow_symlinks=False).st_size for entry in os.scandir(folder))
    except OSError:
        return 0


def _read_json(path: Path) -> object:
    """What a file of JSON holds. None if there is none, or it is not a regular file of a sensible size with JSON in it."""
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)  # looks without opening: no device or pipe is touched
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
