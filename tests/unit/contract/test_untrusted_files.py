"""Files that user vllm may have written: links, pipes, huge files, wrong types, invalid numbers."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from vllm_safe.contract.recorded_run import End
from vllm_safe.contract.state_file import LoadProgress, ReportedMemory, State
from vllm_safe.contract.untrusted_files import read_ended, read_state

STATE = State(
    *("demo", "a" * 32, 7, 3.0, 1.0, "loading", 2.0, "loading, 3 s", LoadProgress(5, 10, 2.5, 2.0), 1, 2, 3, "", "", ("one", "two")),
    memory=ReportedMemory((5, 6), 7, 8),
)


def written(path: Path, value: object) -> Path:
    path.write_text(json.dumps(value))
    return path


def as_json(state: State) -> dict[str, object]:
    parts = {"progress": state.progress and state.progress._asdict(), "memory": state.memory and state.memory._asdict()}
    return state._asdict() | parts


def test_what_the_main_process_writes(tmp_path: Path) -> None:
    assert read_state(written(tmp_path / "x", as_json(STATE))) == STATE
    assert read_state(written(tmp_path / "x", STATE._asdict())) == STATE._replace(memory=None), "a named tuple may be an array"
    plain = STATE._replace(progress=None, running=None, memory=None)
    assert read_state(written(tmp_path / "x", as_json(plain))) == plain


@pytest.mark.parametrize("memory", [[], 7, {"weights": 5}, {"weights": ["a", -1, None], "cache": "x", "tokens": []}])
def test_memory_that_is_no_report(tmp_path: Path, memory: object) -> None:
    found = read_state(written(tmp_path / "x", as_json(STATE) | {"memory": memory}))
    assert found == STATE._replace(memory=found.memory if found else None)
    assert found is not None
    assert found.memory in {None, ReportedMemory((-1,))}


def test_what_is_no_file(tmp_path: Path) -> None:
    real = written(tmp_path / "real", as_json(STATE))
    (tmp_path / "link").symlink_to(real)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    os.truncate(written(tmp_path / "huge", as_json(STATE)), 1 << 34)
    for name in ("link", "pipe", "folder", "huge", "missing"):
        assert read_state(tmp_path / name) is None, name


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"null", b"[]", b'"x"', b"{", b"[" * 100_000, b"1" * 10_000, b"\0" * 4096])
def test_what_is_no_state(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    assert read_state(tmp_path / "x") is None


@pytest.mark.parametrize("key", ["pid", "time", "started", "since", "phase"])
@pytest.mark.parametrize("value", [None, "x", [], {}, True, float("nan"), float("inf"), 10**400, -(10**30)])
def test_what_a_state_cannot_do_without(tmp_path: Path, key: str, value: object) -> None:
    assert read_state(written(tmp_path / "x", as_json(STATE) | {key: value})) is None


@pytest.mark.parametrize("key", ["time", "started", "since"])
@pytest.mark.parametrize("value", [-1, 1e11, 1 << 61, -(1 << 61)])
def test_a_moment_that_has_no_date(tmp_path: Path, key: str, value: float) -> None:
    """Without this check, `vllm-safe status` of all models would fail because of one of them."""
    assert read_state(written(tmp_path / "x", as_json(STATE) | {key: value})) is None


@pytest.mark.parametrize("value", ["x", [{}], {}, True, float("nan"), 10**400])
def test_what_it_can_do_without_is_left_out(tmp_path: Path, value: object) -> None:
    odd = dict.fromkeys(("progress", "running", "waiting", "tokens", "log"), value)
    found = read_state(written(tmp_path / "x", as_json(STATE) | odd))
    assert found is not None
    assert (found.progress, found.running, found.waiting, found.tokens, found.log) == (None, None, None, None, ())


def test_a_log_without_end_is_cut(tmp_path: Path) -> None:
    found = read_state(written(tmp_path / "x", as_json(STATE) | {"log": ["x" * 5000] * 300, "reason": "y" * 10_000}))
    assert found is not None
    assert len(found.log) == 200
    assert max(map(len, found.log)) == 4000
    assert len(found.reason) == 4000


def test_an_end_is_of_one_start(tmp_path: Path) -> None:
    end = End(9.0, "exited", "why", "exit-code", "exited", "1", {"oom_kill": 1}, {})
    path = written(tmp_path / "x", end._asdict() | {"run": "a" * 32})
    assert read_ended(path, "a" * 32) == end
    assert read_ended(path, "b" * 32) is None
    assert read_ended(written(path, {"run": "a" * 32, "time": "soon"}), "a" * 32) is None
    odd = read_ended(written(path, {"run": "a" * 32, "time": 1, "memory_events": {"oom": "x", "max": 2}, "result": 7}), "a" * 32)
    assert odd == End(1, memory_events={"max": 2})
