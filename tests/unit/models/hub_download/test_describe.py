"""Tests of what a plan is made from: a few bytes of each file are asked for, and nothing is written."""

from __future__ import annotations

import base64
import json
import zlib
from typing import Any

import pytest

from tests.fakes.hub import Fault, Hub
from vllm_safe.models.as_engine.hub_download import model_description

from .conftest import WEIGHTS, Downloader

LARGE = {f"model.layers.{number}.mlp.down_proj.weight": {"dtype": "BF16", "shape": [8, 8]} for number in range(400)}


def safetensors(rows: dict[str, Any], content: bytes = WEIGHTS) -> bytes:
    header = json.dumps(rows).encode()
    return len(header).to_bytes(8, "little") + header + content


FILES = {
    "config.json": b'{"architectures": ["Tiny"]}',
    "model-1.safetensors": safetensors({"lm_head.weight": {"dtype": "BF16", "shape": [10, 8]}}),
    "model-2.safetensors": safetensors(LARGE),
    "original/model.safetensors": safetensors({}),
    "pytorch_model.bin": bytes(5000),
    "empty.safetensors": b"",
}
INDEX = {"model.safetensors.index.json": b'{"weight_map": {}}'}


def heads(answer: dict[str, Any]) -> dict[str, bytes]:
    return {name: zlib.decompress(base64.b64decode(packed)) for name, packed in answer["heads"].items()}


def header_of(data: bytes) -> bytes:
    return data[: 8 + int.from_bytes(data[:8], "little")]


@pytest.fixture
def hub(hub: Hub) -> Hub:
    hub.push(FILES)
    return hub


def test_the_config_and_the_headers_alone_are_asked_for(downloader: Downloader, hub: Hub) -> None:
    hub.push(FILES | INDEX)
    result = downloader.run_process("describe")
    assert (result.status, result.stderr) == (0, "")
    assert result.answer["commit"] == hub.branches["main"]
    assert result.answer["files"] == [[name, len(data)] for name, data in (FILES | INDEX).items()]
    assert heads(result.answer) == {
        name: header_of(data) if name.startswith("model-") else data
        for name, data in (FILES | INDEX).items()
        if name.startswith(("model", "config"))
    }
    assert hub.sent("model-1.safetensors") <= 8 << 10
    assert hub.sent("model-2.safetensors") == len(header_of(FILES["model-2.safetensors"])) > 8 << 10
    assert hub.sent("pytorch_model.bin") == 0
    assert not downloader.models.exists()


def test_a_revision_is_asked_for(downloader: Downloader, hub: Hub) -> None:
    first = hub.branches["main"]
    hub.push({"config.json": b"{}"})
    assert downloader.run("describe", "--revision", first).answer["commit"] == first


@pytest.mark.parametrize("first", [b"\xff" * 8, (1 << 40).to_bytes(8, "little"), bytes(8)])
def test_a_header_that_cannot_be_one_is_handed_on_as_it_came(downloader: Downloader, hub: Hub, first: bytes) -> None:
    hub.push({"config.json": b"{}", "model.safetensors": first + WEIGHTS})
    found = heads(downloader.run("describe").answer)["model.safetensors"]
    assert found.startswith(first)
    assert hub.sent("model.safetensors") <= 8 << 10


@pytest.mark.parametrize(("limit", "value"), [("_LARGEST_HEADERS", 10_000), ("_MOST_FILES", 1), ("_LARGEST_ANSWER", 500)])
def test_headers_that_are_too_much_are_left_out(downloader: Downloader, monkeypatch: pytest.MonkeyPatch, limit: str, value: int) -> None:
    monkeypatch.setattr(model_description, limit, value)
    assert set(heads(downloader.run("describe").answer)) == {"config.json"}


def test_an_index_that_is_too_large_is_not_asked_for(downloader: Downloader, hub: Hub) -> None:
    hub.push({"model.safetensors.index.json": bytes(3 << 20)})
    assert heads(downloader.run("describe").answer) == {}
    assert hub.sent("model.safetensors.index.json") == 0


def test_a_hub_that_sends_the_whole_file_is_cut_off(downloader: Downloader, hub: Hub) -> None:
    content = FILES["model-2.safetensors"]
    hub.faults = [Fault("/cdn/.*/model-2", status=200, body=content) for _ in range(2)]
    assert heads(downloader.run("describe").answer)["model-2.safetensors"] == header_of(content)


def test_a_connection_that_breaks_off_is_tried_again(downloader: Downloader, hub: Hub) -> None:
    hub.faults = [Fault("/cdn/.*/model-1", after=5), Fault("/cdn/.*/config", status=503)]
    result = downloader.run("describe")
    assert (result.status, set(heads(result.answer))) == (0, {"config.json", "model-1.safetensors", "model-2.safetensors"})
    assert "retrying" in result.stderr


def test_refusals_are_those_of_a_fetch(downloader: Downloader, hub: Hub) -> None:
    hub.gated = "manual"
    assert downloader.run("describe").answer == {"trouble": "gated"}
    downloader.repo = "acme/tiny-modle"
    assert downloader.run("describe").answer == {"trouble": "missing"}


def test_a_token_opens_a_gated_model(downloader: Downloader, hub: Hub, token: str) -> None:
    hub.gated = "auto"
    result = downloader.run("describe")
    assert (result.status, token in str(result)) == (0, False)
