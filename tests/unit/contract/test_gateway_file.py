"""The gateway's settings: every value arrives unchanged, and anything else is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_safe.contract.gateway_file import GatewayFile, GatewayModel, demand_socket, read_gateway_file

sizes = st.dictionaries(st.integers(0, 63), st.integers(0, 1 << 50), max_size=4)
seconds = st.floats(0, 1e9) | st.none()
models = st.builds(
    GatewayModel,
    name=st.text(min_size=1, max_size=8),
    served=st.lists(st.text(max_size=8), max_size=3).map(tuple),
    socket=st.text(max_size=8),
    address=st.tuples(st.text(max_size=8), st.integers(1, 65535)),
    on_demand=st.booleans(),
    idle_timeout=seconds,
    stop_grace=st.floats(0, 1e6),
    needs=sizes,
    memory=st.integers(0, 1 << 50),
)
files = st.builds(
    GatewayFile,
    host=st.text(max_size=8),
    port=st.integers(1, 65535),
    wait=seconds,
    models=st.lists(models, max_size=3).map(tuple),
    gpus=sizes,
    memory=st.integers(0, 1 << 50),
    edited=st.floats(0, 1e10),
)


@settings(deadline=None, max_examples=100)
@given(files)
def test_what_was_decided_arrives_as_it_was(file: GatewayFile) -> None:
    assert GatewayFile.from_json(file.to_json()) == file


@settings(deadline=None, max_examples=100)
@given(
    st.text() | st.dictionaries(st.sampled_from(["models", "gpus", "port", "else"]), st.integers() | st.lists(st.none())).map(json.dumps)
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        GatewayFile.from_json(text)


def test_a_model_is_found_by_its_name() -> None:
    coder = GatewayModel("coder", ("coder",), demand_socket("coder"), ("127.0.0.1", 18000))
    assert GatewayFile(models=(coder,)).model("coder") is coder
    assert GatewayFile(models=(coder,)).model("other") is None


def test_the_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "gateway.json"
    path.write_text(GatewayFile(port=8081).to_json())
    assert read_gateway_file(str(path)).port == 8081
