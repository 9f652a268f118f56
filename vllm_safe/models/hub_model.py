"""What a hub says of a model: its files, and the first bytes of some. Pure.

It comes from a program of user vllm, which has it from anybody: each value is checked or bounded here, and the bytes by who reads them.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vllm_safe.common.printable_text import printable
from vllm_safe.common.sizes import MIB, TIB

_MOST = 1024 * TIB  # bytes: the largest size that is accepted for a file
_LARGEST_HEADS = 16 * MIB  # of all files together, unpacked


@dataclass(frozen=True)
class HubFile:
    """One file as the hub lists it. `here`: how many of its `size` bytes need no transfer."""

    name: str
    size: int
    here: int = 0


@dataclass(frozen=True)
class HubModel:
    """One commit of a model, to be read as a folder is. heads: the first bytes of some files; sizes in bytes."""

    commit: str
    sizes: Mapping[str, int]
    heads: Mapping[str, bytes]

    def names(self) -> list[str]:
        """Return the names of the files."""
        return list(self.sizes)

    def size(self, name: str) -> int:
        """Return the size of a file, or -1."""
        return self.sizes.get(name, -1)

    def head(self, name: str, count: int) -> bytes | None:
        """Return the first bytes of a file, at most `count`, or None if it was not asked for them."""
        head = self.heads.get(name)
        return None if head is None else head[:count]

    def json(self, name: str) -> object:
        """Return the value in a JSON file, or None if there is none that is valid."""
        try:
            return json.loads(self.heads[name])
        except (KeyError, ValueError, RecursionError):
            return None


def parse_hub_files(answer: Mapping[str, Any]) -> tuple[str, tuple[HubFile, ...]]:
    """Return the commit and the files of an answer. Raises KeyError, TypeError or ValueError for one that is none."""
    return _word(answer["commit"]), tuple(HubFile(_word(name), *map(_bytes, sizes)) for name, *sizes in answer["files"])


def parse_hub_model(answer: Mapping[str, Any]) -> HubModel:
    """Return the model of an answer. Raises KeyError, TypeError or ValueError for one that is none."""
    commit, files = parse_hub_files(answer)
    heads: dict[str, bytes] = {}
    left = _LARGEST_HEADS
    for name, packed in dict(answer["heads"]).items():
        heads[_word(name)] = head = _unpack(packed, left)
        left -= len(head)
    return HubModel(commit, {file.name: file.size for file in files}, heads)


def _unpack(packed: object, most: int) -> bytes:
    """Return the bytes of base64 of zlib's format. Raises ValueError if there are more than `most`."""
    inflater = zlib.decompressobj()
    try:
        data = inflater.decompress(base64.b64decode(str(packed), validate=True), most + 1)
    except zlib.error as error:
        raise ValueError(str(error)) from error
    if len(data) > most or not inflater.eof:
        raise ValueError("too long, or cut off")
    return data


def _word(text: object) -> str:
    return printable(" ".join(str(text).split()))


def _bytes(size: object) -> int:
    """Return a size within sensible bounds, since a program of another user may print any number."""
    return min(max(0, int(str(size))), _MOST)
