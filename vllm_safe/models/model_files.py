"""Facts about one model's files: where they are, and whether they are complete.

Root only reads here, since the folders belong to user vllm or to any other user (common/model_folder.py): nothing is written, and no
content of a file is ever shown.
"""

from __future__ import annotations

import errno
import os
import re
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from vllm_safe.common import paths
from vllm_safe.common.model_folder import INDEX, ModelFolder, open_model_folder

MANIFEST = ".vllm-safe.json"  # written by models/as_engine/hub_download/model_store.py


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
        with open_model_folder(models, model) as opened:
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
    with suppress(OSError), open_model_folder(models or paths.MODELS, model) as opened:
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
    with suppress(OSError), open_model_folder(models or paths.MODELS, model) as opened:
        sizes = {name: size for name in opened.names() if (size := opened.size(name)) > 0}
        name = max(sizes, key=lambda each: sizes[each], default="")
        if name:
            kind = PurePosixPath(name).suffix
            total = sum(size for each, size in sizes.items() if each.endswith(kind))
            return OpenFile(opened.open(name, os.O_DIRECT), name, total)
    return None


def _judge(folder: ModelFolder, files: ModelFiles) -> ModelFiles:
    manifest = folder.json(MANIFEST) if files.repo else None
    return replace(files, problem=_gap(folder)) if manifest is None else _fetched(folder, files, manifest)


def _fetched(folder: ModelFolder, files: ModelFiles, manifest: object) -> ModelFiles:
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


def _gap(folder: ModelFolder) -> str:
    """Return what is missing in a folder that vllm-safe did not fetch, as far as its own index of weights shows, or ""."""
    if not any(folder.has(name) for name in ("config.json", "params.json")):
        return "it has no config.json"
    index = folder.json(INDEX)
    named = index.get("weight_map") if isinstance(index, dict) else None
    shards = {shard for shard in named.values() if isinstance(shard, str)} if isinstance(named, dict) else set()
    missing = sorted(shard for shard in shards if not folder.has(shard))
    return f"{len(missing)} of its {len(shards)} weight files are missing, such as {_shown(missing[0])}" if missing else ""


def _shown(name: str) -> str:
    """Return a name that another user chose, shortened and without control characters."""
    return repr(name if len(name) <= 100 else f"{name[:100]}...")


def _bytes_in(models: Path, subfolder: str) -> int:
    try:
        with open_model_folder(models, subfolder) as opened:
            folder = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=opened.handle)
            try:
                return sum(entry.stat(follow_symlinks=False).st_size for entry in os.scandir(folder))
            finally:
                os.close(folder)
    except OSError:
        return 0
