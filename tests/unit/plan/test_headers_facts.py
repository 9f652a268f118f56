"""Tests of reading the headers of weight files, which anybody can have written, in a folder and at a hub."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from vllm_safe.common.errors import Failure
from vllm_safe.common.model_folder import ModelFolder
from vllm_safe.plan.headers_facts import read_hub_files, read_stored_model
from vllm_safe.plan.tensors import Tensor

PAGE = "https://hub.example/acme/m"

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 1000,
    "torch_dtype": "bfloat16",
}


def safetensors(rows: dict[str, Any], content: int = 0) -> bytes:
    header = json.dumps(rows).encode()
    return len(header).to_bytes(8, "little") + header + bytes(content)


def row(shape: list[int], dtype: str = "BF16") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [0, 1]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path


def test_files_of_an_index(folder: Path) -> None:
    (folder / "a.safetensors").write_bytes(safetensors({"__metadata__": {"format": "pt"}, "lm_head.weight": row([1000, 64])}, 100))
    (folder / "b.safetensors").write_bytes(safetensors({f"m.layers.0.mlp.experts.{n}.w1.weight": row([8, 4]) for n in range(3)}))
    (folder / "other.safetensors").write_bytes(b"not one of the index")
    shards = {"x": "a.safetensors", "y": "b.safetensors", "z": "../../etc/shadow"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    found = read_stored_model(str(folder))
    assert found.tensors == (Tensor("lm_head.weight", (1000, 64), "BF16"), Tensor("m.layers.0.mlp.experts.*.w1.weight", (8, 4), "BF16", 3))
    assert (found.files, found.size) == (2, sum((folder / name).stat().st_size for name in ("a.safetensors", "b.safetensors")))


def test_a_part_of_the_files_says_nothing_of_the_whole(folder: Path) -> None:
    (folder / "a.safetensors").write_bytes(safetensors({"lm_head.weight": row([1000, 64])}))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "a.safetensors", "v": "missing.safetensors"}}))
    assert read_stored_model(str(folder)).tensors == ()
    (folder / "config.json").write_text(json.dumps(CONFIG | {"architectures": ["NewForCausalLM"]}))
    found = read_stored_model(str(folder))
    assert (len(found.tensors), found.config.unknown[-1]) == (1, "the missing weight files")


def test_gguf_files_are_no_tensors_of_the_family(folder: Path) -> None:
    (folder / "model-Q4_K_M.gguf").write_bytes(bytes(100))
    found = read_stored_model(str(folder)).config
    assert (found.has_known_tensors, found.unknown[-1]) == (False, "the content of GGUF files")


def test_sizes_alone_where_there_are_no_headers(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(bytes(1234))
    found = read_stored_model(str(folder))
    assert (found.tensors, found.size, found.files) == ((), 1234, 1)


def test_nothing_but_a_config(folder: Path) -> None:
    found = read_stored_model(str(folder))
    assert (found.tensors, found.size, found.source) == ((), 0, "config.json")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 8,
        (1 << 40).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"[]",
        (5).to_bytes(8, "little") + b"{nope",
        safetensors({"x": row([-1])}),
        safetensors({"x": row([1 << 50])}),
        safetensors({"x": {"dtype": "F16", "shape": "big"}}),
        safetensors({"x": {"dtype": ["F16"], "shape": []}}),
        safetensors({"x": 3}),
        (50_000).to_bytes(8, "little") + b"[" * 50_000,
    ],
)
def test_a_damaged_file_is_named(folder: Path, content: bytes) -> None:
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(Failure, match=r"model\.safetensors is damaged") as caught:
        read_stored_model(str(folder))
    assert caught.value.hint == "Fetch the model again."


def test_a_type_of_a_later_format_is_no_damage(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(safetensors({"x": row([2, 3], "F7")}))
    with pytest.raises(Failure, match=r"model\.safetensors has tensors of type F7, which this version of vllm-safe does not know"):
        read_stored_model(str(folder))


def test_a_folder_that_may_not_be_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_folder: ModelFolder, name: str) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), name)  # tests may run as root, who may read everything

    monkeypatch.setattr(ModelFolder, "look", refuse)
    with pytest.raises(Failure, match=r"cannot read .*: Permission denied"):
        read_stored_model(str(folder))


@pytest.mark.parametrize(
    ("text", "why"), [(None, "is missing"), ("{", "is not a JSON file of a sensible size"), ("[1]", "holds no JSON object")]
)
def test_no_usable_config(tmp_path: Path, text: str | None, why: str) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(Failure, match=why):
        read_stored_model(str(tmp_path))


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(Failure, match=r"cannot read .*/nothing: No such file or directory"):
        read_stored_model(str(tmp_path / "nothing"))


def test_links_are_not_followed_where_user_vllm_may_have_put_them(folder: Path) -> None:
    model = folder / "models/acme/m"
    model.mkdir(parents=True)
    (model / "config.json").symlink_to(folder / "config.json")
    with pytest.raises(Failure, match=r"cannot read .*: it is not a regular file"):
        read_stored_model("acme/m", folder / "models")
    assert read_stored_model(str(model)).config.layers == 2  # a folder that the configuration names may be a hub's cache


def test_a_pipe_is_not_waited_for(folder: Path) -> None:
    os.mkfifo(folder / "model.safetensors")
    with pytest.raises(Failure, match=r"cannot read .*: it is not a regular file"):
        read_stored_model(str(folder))


@dataclass(frozen=True)
class Described:
    """The files of a model as a hub describes them. unknown: those whose first bytes were not asked for."""

    files: dict[str, bytes]
    unknown: str = ""

    def names(self) -> list[str]:
        return list(self.files)

    def size(self, name: str) -> int:
        return len(self.files[name]) if name in self.files else -1

    def head(self, name: str, count: int) -> bytes | None:
        return None if name == self.unknown or name not in self.files else self.files[name][:count]

    def json(self, name: str) -> object:
        return json.loads(self.files[name]) if name in self.files else None


def test_a_hub_is_read_as_a_folder_is(folder: Path) -> None:
    files = {
        "config.json": json.dumps(CONFIG).encode(),
        "a.safetensors": safetensors({"lm_head.weight": row([1000, 64])}, 100),
        "b.safetensors": safetensors({"model.norm.weight": row([64])}),
        "consolidated.safetensors": b"the same once more",
        "original/c.safetensors": b"the same once more",
    }
    for name in ("a.safetensors", "b.safetensors"):
        (folder / name).write_bytes(files[name])
    here, there = read_stored_model(str(folder)), read_hub_files(Described(files), PAGE, "c0ffee")
    assert (there.tensors, there.size, there.files) == (here.tensors, here.size, here.files)
    assert (here.source, there.source, there.revision) == ("files", "hub", "c0ffee")


def test_headers_that_the_hub_was_not_asked_for() -> None:
    files = {"config.json": json.dumps(CONFIG).encode(), "a.safetensors": safetensors({}), "b.safetensors": safetensors({})}
    found = read_hub_files(Described(files, unknown="b.safetensors"), PAGE, "c0ffee")
    assert (found.tensors, found.files, found.size) == ((), 2, 20)


@pytest.mark.parametrize(
    ("files", "why"),
    [
        ({}, r"/config\.json is missing"),
        ({"config.json": b"[1]"}, "holds no JSON object"),
        ({"config.json": json.dumps(CONFIG).encode(), "a.safetensors": b"short"}, r"/a\.safetensors is damaged"),
        ({"config.json": json.dumps(CONFIG).encode(), "a.safetensors": safetensors({"x": 3})}, r"header of .*/a\.safetensors is damaged"),
    ],
)
def test_what_a_hub_has_wrong_is_named_with_its_page(files: dict[str, bytes], why: str) -> None:
    with pytest.raises(Failure, match=why) as caught:
        read_hub_files(Described(files), PAGE, "c0ffee")
    assert PAGE in caught.value.message
    assert "fetch the model again" not in caught.value.hint
