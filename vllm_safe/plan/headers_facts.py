"""Facts about the tensors of a model's files: the headers of its safetensors files, and sizes alone where it has none.

Anybody can have written the files. Only regular files of the folder itself are opened, and no more of one is read than its header.
"""

from __future__ import annotations

import json
import os
import re
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_safe.common.errors import Failure
from vllm_safe.common.untrusted_paths import LOOK
from vllm_safe.plan.model_config import ModelConfig, parse_model_config
from vllm_safe.plan.tensors import BITS, Tensor

_LARGEST_JSON = 16 << 20  # bytes of config.json or an index
_LARGEST_HEADER = 100 << 20  # the format's own limit
_MOST_FILES = 2000
_MOST_TENSORS = 2_000_000
_INDEX = "model.safetensors.index.json"
_EXPERT = re.compile(r"\.experts\.\d{1,6}\.")


@dataclass(frozen=True)
class Checkpoint:
    """What a folder holds. `tensors`: () where no header could be read; `size`: bytes of its weight files, 0 where it has none."""

    config: ModelConfig
    tensors: tuple[Tensor, ...] = ()
    size: int = 0
    files: int = 0


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read config.json and what the weight files say of themselves. Raises Failure where config.json is missing or cannot be."""
    handle = _opened(folder)
    try:
        config = parse_model_config(_json(handle, "config.json", folder), str(folder / "config.json"))
        files = _weight_files(handle, folder)
        size = sum(_size(handle, file) for file in files)
        named = [file for file in files if file.endswith(".safetensors")]
        return Checkpoint(config, _tensors(handle, folder, named), size, len(files))
    finally:
        os.close(handle)


def _opened(folder: Path) -> int:
    try:
        return os.open(folder, LOOK | os.O_DIRECTORY)
    except OSError as error:
        raise Failure(f"cannot read {folder}: {error.strerror}", hint="give the folder of the model's files") from error


def _descriptor(handle: int, name: str) -> int:
    """Open a regular file of the folder for reading. A hub's cache consists of links to its blobs: the last one is followed.

    Raises OSError, also for what is no regular file.
    """
    looked = os.open(name, LOOK, dir_fd=handle)
    try:
        if not stat.S_ISREG(os.fstat(looked).st_mode):
            raise OSError(0, "is no regular file", name)
        # O_NONBLOCK: by a lease on the file (fcntl(2)) its owner could block the open for 45 s.
        return os.open(f"/proc/self/fd/{looked}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    finally:
        os.close(looked)


def _json(handle: int, name: str, folder: Path) -> object:
    try:
        with os.fdopen(_descriptor(handle, name), "rb") as file:
            content = file.read(_LARGEST_JSON + 1)
        if len(content) > _LARGEST_JSON:
            raise Failure(f"{folder / name} has more than {_LARGEST_JSON >> 20} MiB", hint="fetch the model again")
        return json.loads(content)
    except OSError as error:
        raise Failure(f"cannot read {folder / name}: {error.strerror}", hint="fetch the model, or give the folder that has it") from error
    except (ValueError, RecursionError) as error:
        raise Failure(f"{folder / name} is no valid JSON", hint="fetch the model again") from error


def _size(handle: int, name: str) -> int:
    with suppress(OSError):
        looked = os.open(name, LOOK, dir_fd=handle)
        try:
            status = os.fstat(looked)
            return status.st_size if stat.S_ISREG(status.st_mode) else 0
        finally:
            os.close(looked)
    return 0


def _weight_files(handle: int, folder: Path) -> list[str]:
    """Return the names of the weight files: those of the index, else all of the best kind."""
    names = sorted(file.name for file in Path(f"/proc/self/fd/{handle}").iterdir())[: 10 * _MOST_FILES]
    if _INDEX in names:
        index = _json(handle, _INDEX, folder)
        shards = index.get("weight_map") if isinstance(index, dict) else None
        if isinstance(shards, dict):
            found = sorted({shard for shard in shards.values() if isinstance(shard, str)} & set(names))
            return found[:_MOST_FILES]
    for ending in (".safetensors", ".bin", ".pt"):
        found = [name for name in names if name.endswith(ending) and not name.startswith(("training_args", "consolidated"))]
        if found:
            return found[:_MOST_FILES]
    return []


def _tensors(handle: int, folder: Path, files: list[str]) -> tuple[Tensor, ...]:
    counted: dict[tuple[str, tuple[int, ...], str], int] = {}
    total = 0
    for file in files:
        for name, shape, dtype in _header(handle, folder, file):
            total += 1
            key = (_EXPERT.sub(".experts.*.", name), shape, dtype)
            counted[key] = counted.get(key, 0) + 1
        if total > _MOST_TENSORS:
            raise Failure(f"{folder} has more than {_MOST_TENSORS} tensors", hint="fetch the model again")
    return tuple(Tensor(name, shape, dtype, count) for (name, shape, dtype), count in counted.items())


def _header(handle: int, folder: Path, name: str) -> list[tuple[str, tuple[int, ...], str]]:
    """Read the header of one safetensors file: 8 bytes with its length, then JSON. Raises Failure where it is damaged."""
    damaged = Failure(f"{folder / name} is damaged or incomplete", hint="fetch the model again")
    try:
        with os.fdopen(_descriptor(handle, name), "rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(_LARGEST_HEADER, size - 8):
                raise damaged
            values = json.loads(file.read(length))
    except OSError as error:
        raise Failure(f"cannot read {folder / name}: {error.strerror}", hint="fetch the model again") from error
    except (ValueError, RecursionError) as error:
        raise damaged from error
    if not isinstance(values, dict):
        raise damaged
    found = []
    for tensor, row in values.items():
        if tensor != "__metadata__":
            if not _is_row(row):
                raise damaged
            found.append((tensor[:500], tuple(row["shape"]), row["dtype"]))
    return found


def _is_row(row: Any) -> bool:  # noqa: ANN401 # it is JSON
    if not isinstance(row, dict) or row.get("dtype") not in BITS:
        return False
    shape = row.get("shape")
    return isinstance(shape, list) and len(shape) <= 8 and all(type(side) is int and 0 <= side < 1 << 40 for side in shape)
