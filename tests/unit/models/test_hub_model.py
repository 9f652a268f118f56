"""Tests of the answer about a model at its hub, which a program of user vllm prints and anybody can have a part in."""

from __future__ import annotations

import base64
import zlib
from typing import Any

import pytest

from vllm_safe.models.hub_model import parse_hub_files, parse_hub_model


def packed(data: bytes) -> str:
    return base64.b64encode(zlib.compress(data)).decode()


def answer(**changes: Any) -> dict[str, Any]:  # noqa: ANN401 -- it is JSON
    files = [["config.json", 2], ["m.safetensors", 1000]]
    return {"commit": "c0ffee", "files": files, "heads": {"config.json": packed(b"{}"), "m.safetensors": packed(b"12345678")}, **changes}


def test_it_is_read_as_a_folder_is() -> None:
    model = parse_hub_model(answer())
    assert (model.commit, model.names()) == ("c0ffee", ["config.json", "m.safetensors"])
    assert (model.size("m.safetensors"), model.size("other")) == (1000, -1)
    assert (model.head("m.safetensors", 3), model.head("other", 3)) == (b"123", None)
    assert (model.json("config.json"), model.json("m.safetensors"), model.json("other")) == ({}, 12345678, None)


@pytest.mark.parametrize("text", [b"{", b"\xff", b"[" * 50_000, b""])
def test_what_is_no_json_is_none(text: bytes) -> None:
    assert parse_hub_model(answer(heads={"config.json": packed(text)})).json("config.json") is None


@pytest.mark.parametrize(
    "changes",
    [
        {"heads": None},
        {"heads": 7},
        {"heads": ["ab"]},
        {"heads": {"x": None}},
        {"heads": {"x": "no base64!"}},
        {"heads": {"x": base64.b64encode(b"not zlib").decode()}},
        {"heads": {"x": base64.b64encode(zlib.compress(b"cut off")[:-3]).decode()}},
        {"heads": {"x": packed(bytes(17 << 20))}},
        {"heads": {str(number): packed(bytes(3 << 20)) for number in range(6)}},
        {"files": 5},
        {"files": [["x"]]},
        {"files": [["x", 1, 2, 3]]},
        {"files": [[]]},
        {"files": [["x", "many"]]},
        {"files": [["x", float("inf")]]},
    ],
)
def test_what_is_no_answer_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        parse_hub_model(answer(**changes))


def test_what_is_not_there_is_refused() -> None:
    for key in answer():
        with pytest.raises(KeyError):
            parse_hub_model({name: value for name, value in answer().items() if name != key})


def test_names_and_sizes_are_bounded_and_harmless() -> None:
    commit, files = parse_hub_files({"commit": "\x1b[2Jab\ncd", "files": [["a\x07b\n", -5, 10**30]]})
    assert commit.isprintable()
    assert files[0].name.isprintable()
    assert (files[0].size, files[0].here) == (0, 1 << 50)
