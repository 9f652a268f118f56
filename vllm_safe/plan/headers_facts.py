"""Facts about the tensors of a model's files: the headers of its safetensors files, and sizes alone where it has none.

Anybody can have written the files: no more of one is read than its header, and each value of it is checked.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vllm_safe.common import paths
from vllm_safe.common.errors import Failure
from vllm_safe.common.model_folder import INDEX, ModelFolder, open_model_folder
from vllm_safe.plan.model_config import ModelConfig, parse_model_config
from vllm_safe.plan.tensors import BITS, Tensor

_LARGEST_HEADER = 100 << 20  # bytes: the format's own limit
_LARGEST_HEADERS = 400 << 20  # of all files together: the largest known models have 30 MB
_MOST_FILES = 2000
_EXPERT = re.compile(r"\.experts\.\d{1,6}\.")
_FETCH = "Fetch the model, or give the folder that has it."
_AGAIN = "Fetch the model again."


@dataclass(frozen=True)
class StoredModel:
    """What a folder holds. `tensors`: () where no header could be read; `size`: bytes of its weight files, 0 where it has none."""

    config: ModelConfig
    tensors: tuple[Tensor, ...] = ()
    size: int = 0
    files: int = 0


def read_stored_model(model: str, models: Path | None = None) -> StoredModel:
    """Read config.json, and what the weight files say of themselves.

    model: a hub id ORG/NAME, kept below `models` (paths.MODELS), or the absolute path of a folder. Raises Failure where config.json is
    missing or cannot be, and where a weight file is damaged.
    """
    models = models or paths.MODELS
    where = models / model
    try:
        with open_model_folder(models, model) as folder:
            values = folder.json("config.json")
            if values is None:
                missing = "is missing" if not folder.has("config.json") else "is not a JSON file of a sensible size"
                raise Failure(f"{where}/config.json {missing}", hint=_FETCH)
            config = parse_model_config(values, f"{where}/config.json")
            files, whole = _weight_files(folder)
            tensors = _tensors(folder, where, [file for file in files if file.endswith(".safetensors")])
            if not whole:  # no total can be made of a part
                tensors = () if config.has_known_tensors else tensors
                config = replace(config, unknown=(*config.unknown, *(() if tensors == () else ("the weight files that are missing",))))
            elif not files and any(name.endswith(".gguf") for name in folder.names()):
                config = replace(config, family="", unknown=(*config.unknown, "what is in GGUF files"))
            return StoredModel(config, tensors, sum(max(0, folder.size(file)) for file in files), len(files))
    except OSError as error:
        raise Failure(f"cannot read {where}: {error.strerror}", hint=_FETCH) from error


def _weight_files(folder: ModelFolder) -> tuple[list[str], bool]:
    """Return the weight files that are there, and whether they are all: those of the index, else all of the best kind."""
    index = folder.json(INDEX)
    shards = index.get("weight_map") if isinstance(index, dict) else None
    if isinstance(shards, dict):
        named = sorted({shard for shard in shards.values() if isinstance(shard, str) and "/" not in shard})[:_MOST_FILES]
        there = [shard for shard in named if folder.has(shard)]
        return there, len(there) == len(named)
    names = sorted(folder.names())
    for ending in (".safetensors", ".bin", ".pt"):
        # consolidated*: the same weights once more, as Mistral's own programs read them
        found = [name for name in names if name.endswith(ending) and not name.startswith(("training_args", "consolidated"))]
        if found:
            return found[:_MOST_FILES], True
    return [], True


def _tensors(folder: ModelFolder, where: Path, files: list[str]) -> tuple[Tensor, ...]:
    """Return the tensors of all files, those of alike experts as one."""
    counted: dict[tuple[str, tuple[int, ...], str], int] = {}
    left = _LARGEST_HEADERS
    for file in files:
        header = _header(folder, where, file, left)
        left -= len(header)
        for key in _rows(header, where / file):
            counted[key] = counted.get(key, 0) + 1
    return tuple(Tensor(name, shape, dtype, count) for (name, shape, dtype), count in counted.items())


def _header(folder: ModelFolder, where: Path, name: str, left: int) -> bytes:
    """Read the header of one safetensors file: 8 bytes with its length, then JSON. Raises Failure where it cannot be one."""
    with os.fdopen(folder.open(name), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(_LARGEST_HEADER, left, size - 8):
            raise Failure(f"{where / name} is damaged or incomplete", hint=_AGAIN)
        return file.read(length)


def _rows(header: bytes, file: Path) -> list[tuple[str, tuple[int, ...], str]]:
    damaged = Failure(f"the header of {file} is damaged", hint=_AGAIN)
    try:
        values = json.loads(header)
    except (ValueError, RecursionError) as error:
        raise damaged from error
    rows = {name: row for name, row in values.items() if name != "__metadata__"} if isinstance(values, dict) else None
    if rows is None or not all(map(_is_row, rows.values())):
        raise damaged
    return [(_EXPERT.sub(".experts.*.", name[:500]), tuple(row["shape"]), row["dtype"]) for name, row in rows.items()]


def _is_row(row: Any) -> bool:  # noqa: ANN401 # it is JSON
    if not isinstance(row, dict) or not isinstance(row.get("dtype"), str) or row["dtype"] not in BITS:
        return False
    shape = row.get("shape")
    return isinstance(shape, list) and len(shape) <= 8 and all(type(side) is int and 0 <= side < 1 << 40 for side in shape)
