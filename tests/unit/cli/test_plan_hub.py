"""`vllm-safe plan` of a model that was not fetched, with the real downloader, but without systemd and user vllm."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.builders.hub_runs import run_here
from tests.fakes.hub import Fault, Hub
from tests.truth.starts import MODELS_FILE
from vllm_safe.cli import plan as cli_plan
from vllm_safe.cli.main import main
from vllm_safe.common import paths, run_lock
from vllm_safe.common.sizes import GIB
from vllm_safe.host.host_facts import Host
from vllm_safe.models import hub_client
from vllm_safe.sandbox.run_as_vllm import AsVllm, Outcome

REPO = "acme/tiny"
VOCABULARY = [152064, 3584]
HEADER = json.dumps({"model.embed_tokens.weight": {"dtype": "BF16", "shape": VOCABULARY, "data_offsets": [0, 1]}}).encode()
FILES = {
    "config.json": json.dumps(json.loads(MODELS_FILE.read_text())["qwen2.5-7b"]).encode(),
    "model.safetensors": len(HEADER).to_bytes(8, "little") + HEADER + bytes(1 << 20),
}


class Bench:
    """A machine with a hub and a configuration, on which root plans."""

    def __init__(self, folder: Path, hub: Hub, capture: pytest.CaptureFixture[str]) -> None:
        self.hub, self._capture = hub, capture
        self.models, self.config = folder / "models", folder / "config.yaml"
        self.config.write_text(json.dumps({"engine": {"hub": hub.url}, "models": {"x": {"model": REPO, "port": 8000}}}))

    def plan(self, *arguments: str) -> tuple[int, str, str]:
        """Return the exit code, stdout and stderr of `vllm-safe plan` for a GPU of 24 GiB."""
        code = main(["plan", *arguments, "--gpus", "24GiB sm8.6", "--config", str(self.config)])
        captured = self._capture.readouterr()
        return code, captured.out, captured.err

    def answer(self, *arguments: str) -> dict[str, Any]:
        """Return the object of --json."""
        code, out, _ = self.plan(*arguments, "--json")
        assert code == 0
        found: dict[str, Any] = json.loads(out)
        return found


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Bench]:
    monkeypatch.setattr(AsVllm, "outcome", run_here)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(cli_plan, "read_host", lambda: Host(memory=16 * GIB))
    monkeypatch.setattr(cli_plan, "read_units", lambda *_: {})
    monkeypatch.setattr(hub_client, "PYTHON", Path(sys.executable))
    monkeypatch.setattr(hub_client, "_LIST_PATIENCE", ((), 0))
    monkeypatch.setattr(paths, "MODELS", tmp_path / "models")
    monkeypatch.setattr(run_lock, "RUN", tmp_path / "run")
    with Hub(REPO, FILES) as hub:
        yield Bench(tmp_path, hub, capsys)


@pytest.mark.parametrize("name", [REPO, "x"])
def test_the_hub_is_asked_about_a_model_that_was_not_fetched(bench: Bench, name: str) -> None:
    found = bench.answer(name)
    assert found["source"] == "hub"
    assert found["weights_bytes_per_gpu"] == [pytest.approx(2 * VOCABULARY[0] * VOCABULARY[1], rel=0.02)]
    revision = bench.hub.branches["main"][:10]
    assert found["notes"][0] == f"from the hub, revision {revision}: config.json and headers of the files"
    assert bench.hub.sent("model.safetensors") <= 8 << 10
    assert not bench.models.exists()
    code, out, err = bench.plan(name)
    assert (code, err) == (0, f"{REPO} is not fetched: asking {bench.hub.url} about it\n")
    assert found["notes"][0] in out


def test_sizes_where_there_are_no_headers(bench: Bench) -> None:
    bench.hub.push({"config.json": FILES["config.json"], "pytorch_model.bin": bytes(9000)})
    assert "config.json and sizes of the files" in bench.answer(REPO)["notes"][0]
    bench.hub.push({"config.json": FILES["config.json"]})
    assert bench.answer(REPO)["notes"][0].endswith("config.json alone")


def test_what_is_here_is_not_asked_for(bench: Bench) -> None:
    folder = bench.models / REPO
    folder.mkdir(parents=True)
    (folder / "config.json").write_bytes(FILES["config.json"])
    assert bench.answer("x")["source"] == bench.answer(REPO)["source"] == bench.answer(str(folder))["source"] == "config.json"
    (folder / "model.safetensors").write_bytes(FILES["model.safetensors"])
    assert bench.answer("x")["source"] == bench.answer(REPO)["source"] == "files"
    assert bench.hub.requests == []


def test_offline_the_hub_is_not_asked(bench: Bench) -> None:
    code, _, err = bench.plan("x", "--offline")
    assert (code, f"cannot read {bench.models / REPO}: No such file" in err) == (1, True)
    assert bench.hub.requests == []


def test_a_mistake_is_told_before_the_hub_is_asked(bench: Bench) -> None:
    code, _, err = bench.plan(REPO, "--set", "max-model-len=long")
    assert (code, "max-model-len is not a whole number" in err) == (2, True)
    assert bench.hub.requests == []


@pytest.mark.parametrize(
    ("name", "words"),
    [("acme/tiny-modle", "the hub has no model acme/tiny-modle"), ("acme/a/b", "cannot read"), ("acme/--x", "cannot read")],
)
def test_a_name_that_no_model_has(bench: Bench, name: str, words: str) -> None:
    code, _, err = bench.plan(name)
    assert (code, words in err, "models." in err) == (1, True, False)


def test_a_hub_that_fails_is_two_lines_with_a_way_out(bench: Bench) -> None:
    bench.hub.faults = [Fault("/api/", status=500)]
    code, _, err = bench.plan(REPO)
    assert code == 1
    assert err.splitlines()[1:] == [
        "vllm-safe: the hub has an internal error (HTTP 500), also after retries",
        f"  Run again: vllm-safe plan {REPO}   Or give a folder with its config.json: vllm-safe plan ./FOLDER",
    ]


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"model.safetensors": b"no header"}, "config.json is missing"),
        ({"config.json": b"{}"}, "config.json: architectures is not a list with a name"),
        ({"config.json": FILES["config.json"], "model.safetensors": b"no header"}, "model.safetensors is damaged or incomplete"),
    ],
)
def test_what_is_wrong_at_the_hub_is_named(bench: Bench, files: dict[str, bytes], words: str) -> None:
    bench.hub.push(files)
    code, _, err = bench.plan(REPO)
    assert code == 1
    assert f"{bench.hub.url}/{REPO}/{words}" in err
    assert "vllm-safe plan ./FOLDER" in err


def test_without_an_engine_and_without_root(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_client, "PYTHON", bench.models / "nothing")
    code, _, err = bench.plan("x")
    assert (code, "no engine is installed, which is needed to ask the hub about acme/tiny, which is not fetched" in err) == (1, True)
    assert "vllm-safe install   Or give a folder with its config.json" in err
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    code, _, err = bench.plan("x")
    assert (code, "only root may have the hub asked" in err, "sudo" in err) == (1, True, True)
    assert bench.hub.requests == []


@pytest.mark.parametrize(
    "stdout",
    [
        '{"commit": "c", "files": [["config.json", 2]], "heads": {"config.json": "e30="}}\n',
        '{"commit": "c", "files": [["config.json"]], "heads": {}}\n',
        '{"commit": "c", "files": []}\n',
    ],
)
def test_an_answer_that_is_none(bench: Bench, monkeypatch: pytest.MonkeyPatch, stdout: str) -> None:
    monkeypatch.setattr(AsVllm, "outcome", lambda _task: Outcome("success", 0, stdout, ""))
    code, _, err = bench.plan(REPO)
    assert (code, "the output of the downloader is invalid" in err) == (1, True)


def test_it_writes_nowhere_and_has_little_time_and_memory(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks: list[AsVllm] = []

    def outcome(task: AsVllm) -> Outcome:
        tasks.append(task)
        return run_here(task)

    monkeypatch.setattr(AsVllm, "outcome", outcome)
    bench.plan(REPO)
    bench.plan("x")
    assert [task.unit for task in tasks] == ["vllm-safe-plan-acme--tiny", "vllm-safe-plan-x"]
    for task in tasks:
        assert (task.writable, task.memory_max, task.swap_max, task.time_limit) == ((), GIB, 0, 180)


def test_without_a_configuration_the_public_hub_is_asked(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vllm_safe.models.fetch_source.DEFAULT_HUB", bench.hub.url)
    bench.config.unlink()
    assert bench.plan(REPO)[0] == 2  # a file that was named has to be there
    monkeypatch.setattr(cli_plan, "DEFAULT_PATH", bench.config)
    assert bench.answer(REPO)["source"] == "hub"
