"""Facts about the tensors of a model's files: the headers of its safetensors files, or only sizes if it has none.

The files, in a folder or at a hub, may come from anybody. Of each, only the header is read, and every value in it is checked.
"""

from __future__ import annotations

import errno
import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from vllm_safe.common import paths
from vllm_safe.common.errors import Failure
from vllm_safe.common.model_folder import INDEX, open_model_folder
from vllm_safe.plan.config_json import parse_model_config
from vllm_safe.plan.model_config import ModelConfig
from vllm_safe.plan.tensors import BITS, Tensor

_LARGEST_HEADER = 100 << 20  # bytes: the format's own limit
_LARGEST_HEADERS = 400 << 20  # of all files together: the largest known models have 30 MB
_MOST_FILES = 2000
_EXPERT = re.compile(r"\.experts\.\d{1,6}\.")
_FETCH = "Fetch the model, or give the folder that has it."
_AGAIN = "Fetch the model again."
_WITHOUT_TYPE = "Update vllm-safe. The model can be started without a plan."
_LENGTH = 8  # bytes at the beginning of a safetensors file: the length of its header


class HasFiles(Protocol):
    """The files of a model in a folder (common/model_folder.py), or as a hub describes them (models/hub_model.py)."""

    def names(self) -> list[str]:
        """Return the names of the files."""

    def size(self, name: str) -> int:
        """Return the bytes of a file, or -1 if there is none."""

    def head(self, name: str, count: int) -> bytes | None:
        """Return the first bytes of a file, at most `count`, or None if they are not known. Raises OSError if they cannot be read."""

    def json(self, name: str) -> object:
        """Return the value in a JSON file, or None if there is none that is valid and of a sensible size."""


@dataclass(frozen=True)
class StoredModel:
    """The facts about a model's files. `tensors`: () if no header could be read; `size`: bytes of its weight files, 0 if there are none.

    `revision`: the commit that the hub described, "" for a folder.
    """

    config: ModelConfig
    tensors: tuple[Tensor, ...] = ()
    size: int = 0
    files: int = 0
    revision: str = ""

    @property
    def source(self) -> str:
        """Where the figures come from: "files" (weight files, or their headers), "config.json" alone, or "hub"."""
        return "hub" if self.revision else "files" if self.files else "config.json"


def read_stored_model(model: str, models: Path | None = None) -> StoredModel:
    """Read config.json and the headers of the weight files.

    model: a hub id ORG/NAME, kept below `models` (paths.MODELS), or the absolute path of a folder. Raises Failure if config.json is
    missing or invalid, or if a weight file is damaged.
    """
    models = models or paths.MODELS
    where = str(models / model)
    try:
        with open_model_folder(models, model) as folder:
            return _judge(folder, where)
    except OSError as error:
        raise Failure(f"cannot read {where}: {error.strerror}", hint=_FETCH) from error


def read_hub_files(files: HasFiles, page: str, revision: str) -> StoredModel:
    """Return the same of the files that a hub described. Raises Failure as read_stored_model does. page: the model's URL."""
    try:
        return replace(_judge(files, page), revision=revision or "unknown")
    except Failure as failure:
        raise Failure(failure.message, hint="Choose another repository, or give a folder: vllm-safe plan ./FOLDER") from failure


def _judge(files: HasFiles, where: str) -> StoredModel:
    values = files.json("config.json")
    if values is None:
        raise Failure(f"{where}/config.json {_config_problem(files)}", hint=_FETCH)
    config = parse_model_config(values, f"{where}/config.json")
    weights, whole = _weight_files(files)
    tensors = _tensors(files, where, [name for name in weights if name.endswith(".safetensors")])
    if not whole:  # some of the files are missing: their sizes have no total
        tensors = () if config.has_known_tensors else tensors
        config = replace(config, unknown=(*config.unknown, *(() if tensors == () else ("the missing weight files",))))
    elif not weights and any(name.endswith(".gguf") for name in files.names()):
        config = replace(config, family="", unknown=(*config.unknown, "the content of GGUF files"))
    return StoredModel(config, tensors, sum(max(0, files.size(name)) for name in weights), len(weights))


def _config_problem(files: HasFiles) -> str:
    """Return the flaw of config.json. Raises OSError if the file cannot be read."""
    try:
        files.head("config.json", 1)
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise
    return "is missing" if files.size("config.json") < 0 else "is not a JSON file of a sensible size"


def _weight_files(files: HasFiles) -> tuple[list[str], bool]:
    """Return the weight files that exist, and whether they are complete: those of the index, or else all files of the best kind."""
    index = files.json(INDEX)
    shards = index.get("weight_map") if isinstance(index, dict) else None
    if isinstance(shards, dict):
        named = sorted({shard for shard in shards.values() if isinstance(shard, str) and "/" not in shard})[:_MOST_FILES]
        there = [shard for shard in named if files.size(shard) >= 0]
        return there, len(there) == len(named)
    names = sorted(name for name in files.names() if "/" not in name)
    for ending in (".safetensors", ".bin", ".pt"):
        # consolidated*: a second copy of the weights, for Mistral's own programs
        found = [name for name in names if name.endswith(ending) and not name.startswith(("training_args", "consolidated"))]
        if found:
            return found[:_MOST_FILES], True
    return [], True


def _tensors(files: HasFiles, where: str, names: list[str]) -> tuple[Tensor, ...]:
    """Return the tensors of all files, with those of equal experts as one; () if the header of a file is not known."""
    counted: dict[tuple[str, tuple[int, ...], str], int] = {}
    left = _LARGEST_HEADERS
    for name in names:
        header = _header(files, where, name, left)
        if header is None:
            return ()
        left -= len(header)
        for key in _rows(header, f"{where}/{name}"):
            counted[key] = counted.get(key, 0) + 1
    return tuple(Tensor(name, shape, dtype, count) for (name, shape, dtype), count in counted.items())


def _header(files: HasFiles, where: str, name: str, left: int) -> bytes | None:
    """Return the header of one safetensors file: 8 bytes with its length, then JSON. Raises Failure if it is not valid."""
    first = files.head(name, _LENGTH)
    if first is None:
        return None
    length = int.from_bytes(first, "little")
    if not 2 <= length <= min(_LARGEST_HEADER, left, files.size(name) - _LENGTH):
        raise Failure(f"{where}/{name} is damaged or incomplete", hint=_AGAIN)
    return (files.head(name, _LENGTH + length) or b"")[_LENGTH:]


def _rows(header: bytes, where: str) -> list[tuple[str, tuple[int, ...], str]]:
    damaged = Failure(f"the header of {where} is damaged", hint=_AGAIN)
    try:
        values = json.loads(header)
    except (ValueError, RecursionError) as error:
        raise damaged from error
    rows = {name: row for name, row in values.items() if name != "__metadata__"} if isinstance(values, dict) else None
    if rows is None or not all(map(_is_row, rows.values())):
        raise damaged
    if unknown := {row["dtype"] for row in rows.values()} - BITS.keys():
        kinds = ", ".join(sorted(kind[:20] for kind in unknown))
        raise Failure(f"{where} has tensors of type {kinds}, which this version of vllm-safe does not know", hint=_WITHOUT_TYPE)
    return [(_EXPERT.sub(".experts.*.", name[:500]), tuple(row["shape"]), row["dtype"]) for name, row in rows.items()]


def _is_row(row: Any) -> bool:  # noqa: ANN401 # it is JSON
    if not isinstance(row, dict) or not isinstance(row.get("dtype"), str):
        return False
    shape = row.get("shape")
    return isinstance(shape, list) and len(shape) <= 8 and all(type(side) is int and 0 <= side < 1 << 40 for side in shape)
