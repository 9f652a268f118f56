"""The tensors of a safetensors file, from its header, and the windows in which files are read."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

_PREFIX = 8  # bytes: the length of the header, before it
_LONGEST = 100_000_000  # bytes of a header: the limit of safetensors


class RingUnusable(Exception):
    """The checkpoint has to be read by vLLM itself. The text gives the reason."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file: its bytes are those from `begin` to `end` of the file."""

    name: str
    kind: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class ReadWindow:
    """Tensors that lie one after another in a file and are read together."""

    file: str
    tensors: tuple[StoredTensor, ...]

    @property
    def begin(self) -> int:
        """The offset in the file of its first byte."""
        return self.tensors[0].begin

    @property
    def end(self) -> int:
        """The offset in the file after its last byte."""
        return self.tensors[-1].end

    @property
    def size(self) -> int:
        """Its size in bytes."""
        return self.end - self.begin


def read_layout(file: str, sizes: Mapping[str, int]) -> list[StoredTensor]:
    """Read the layout of a file: its tensors, in the order in which they are stored. sizes: bytes of an element, by dtype.

    Raises RingUnusable if the file is damaged or truncated, or has a dtype that is not in `sizes`. vLLM's own loader reports the cause.
    """
    with open(file, "rb") as opened:  # noqa: PTH123 - the names are vLLM's, and strings
        total = os.fstat(opened.fileno()).st_size
        length = int.from_bytes(opened.read(_PREFIX), "little")
        if not 2 <= length <= min(_LONGEST, total - _PREFIX):
            raise RingUnusable(f"{file} has no safetensors header")
        text = opened.read(length)
    try:
        return _parse(json.loads(text), _PREFIX + length, total, sizes)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise RingUnusable(f"{file}: {error}") from error


def _parse(header: Mapping[str, Mapping[str, list[int]]], start: int, total: int, sizes: Mapping[str, int]) -> list[StoredTensor]:
    tensors = []
    for name, row in header.items():
        if name == "__metadata__":
            continue
        begin, end = row["data_offsets"]
        kind, shape = str(row["dtype"]), tuple(row["shape"])
        tensor = StoredTensor(name, kind, shape, start + begin, start + end)
        if kind not in sizes or end - begin != prod(shape) * sizes[kind] or tensor.begin % sizes[kind] or begin < 0 or tensor.end > total:
            raise ValueError(f"the tensor {name} has an unknown dtype ({kind}), or its size or offset is wrong")
        tensors.append(tensor)
    return sorted(tensors, key=lambda tensor: (tensor.begin, tensor.end))


def split_into_windows(file: str, tensors: Sequence[StoredTensor], most: int) -> Iterator[ReadWindow]:
    """Split the tensors of a file into windows of at most `most` bytes. A larger tensor is a window of its own."""
    held: list[StoredTensor] = []
    for tensor in tensors:
        if held and tensor.end - held[0].begin > most:
            yield ReadWindow(file, tuple(held))
            held = []
        held.append(tensor)
    if held:
        yield ReadWindow(file, tuple(held))
