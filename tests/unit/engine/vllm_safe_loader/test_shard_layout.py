"""The tensors of a safetensors file, and windows of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vllm_safe.engine.as_engine.vllm_safe_loader.shard_layout import RingUnusable, StoredTensor, read_layout, split_into_windows

SIZES = {"U8": 1, "BF16": 2}


def shard(folder: Path, header: object, body: bytes = bytes(64)) -> str:
    text = json.dumps(header).encode()
    file = folder / "model.safetensors"
    file.write_bytes(len(text).to_bytes(8, "little") + text + body)
    return str(file)


def row(kind: str, shape: list[int], begin: int, end: int) -> dict[str, object]:
    return {"dtype": kind, "shape": shape, "data_offsets": [begin, end]}


def test_tensors_are_in_the_order_of_the_file(tmp_path: Path) -> None:
    header = {"__metadata__": {"format": "pt"}, "b": row("BF16", [2, 4], 16, 32), "a": row("U8", [16], 0, 16)}
    # the header is padded to eight bytes, as safetensors pads it, so that tensors are aligned
    padded = json.dumps(header).encode()
    padded += b" " * (-len(padded) % 8)
    file = tmp_path / "model.safetensors"
    file.write_bytes(len(padded).to_bytes(8, "little") + padded + bytes(32))
    start = 8 + len(padded)
    assert read_layout(str(file), SIZES) == [
        StoredTensor("a", "U8", (16,), start, start + 16),
        StoredTensor("b", "BF16", (2, 4), start + 16, start + 32),
    ]


@pytest.mark.parametrize(
    "header",
    [
        {"a": row("F4", [16], 0, 16)},
        {"a": row("U8", [16], 0, 15)},
        {"a": row("U8", [65], 0, 65)},
        {"a": row("U8", [16], -16, 0)},
        {"a": {"dtype": "U8"}},
        {"a": 1},
        [1],
    ],
    ids=["a kind that is not known", "another size", "beyond the end", "in the header", "no place", "no row", "no table"],
)
def test_what_is_not_as_it_should_be_is_left_to_vllm(tmp_path: Path, header: object) -> None:
    with pytest.raises(RingUnusable, match=r"model\.safetensors"):
        read_layout(shard(tmp_path, header), SIZES)


@pytest.mark.parametrize("data", [b"", b"short", (1 << 62).to_bytes(8, "little") + bytes(100), b"\x04" + bytes(7) + b"\xff\xff{}"])
def test_a_damaged_file_is_left_to_vllm(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(data)
    with pytest.raises(RingUnusable, match=r"model\.safetensors"):
        read_layout(str(file), SIZES)


def test_a_window_holds_what_fits_and_a_larger_tensor_alone() -> None:
    ends = [10, 20, 30, 80, 90]
    tensors = [StoredTensor(str(end), "U8", (end - begin,), begin, end) for begin, end in zip([0, *ends], ends, strict=False)]
    windows = list(split_into_windows("file", tensors, 20))
    assert [(window.begin, window.end, window.size) for window in windows] == [(0, 20, 20), (20, 30, 10), (30, 80, 50), (80, 90, 10)]
    assert [tensor for window in windows for tensor in window.tensors] == tensors
