"""`vllm-safe fetch` from its command line to the files, with the real downloader, but without systemd and user vllm."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.builders.hub_runs import run_here
from tests.fakes.hub import Fault, Hub
from vllm_safe.cli import fetch as cli_fetch
from vllm_safe.cli.main import main
from vllm_safe.common import paths, run_lock
from vllm_safe.models import hub_client
from vllm_safe.sandbox.run_as_vllm import AsVllm, Outcome

REPO = "acme/tiny"
FILES = {"config.json": b"{}", "model.safetensors": bytes(range(256)) * 400, "original/model.pth": bytes(9000)}
CONFIG = """
swap: {{size: none, keep_free: 0}}
engine: {{hub: "{hub}"}}
models:
  tiny: {{model: {repo}, port: 8000}}
  folder: {{model: {folder}, port: 8001}}
  other: {{command: [/bin/true], port: 8002}}
"""


class Bench:
    """A machine with an engine, a hub, and a configuration."""

    def __init__(self, folder: Path, hub: Hub, capture: pytest.CaptureFixture[str]) -> None:
        self.hub, self._capture = hub, capture
        self.models, self.config, self.own = folder / "models", folder / "config.yaml", folder / "own"
        self.models.mkdir()
        self.config.write_text(CONFIG.format(hub=hub.url, repo=REPO, folder=self.own))

    def fetch(self, *arguments: str) -> tuple[int, str, str]:
        """Return the exit code, stdout and stderr of `vllm-safe fetch`."""
        code = main(["fetch", *arguments, "--config", str(self.config)])
        captured = self._capture.readouterr()
        return code, captured.out, captured.err


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Bench]:
    monkeypatch.setattr(AsVllm, "outcome", run_here)
    monkeypatch.setattr(cli_fetch, "need_root", lambda: None)
    monkeypatch.setattr(hub_client, "PYTHON", Path(sys.executable))
    monkeypatch.setattr(hub_client, "_LIST_PATIENCE", ((0,), 1))
    monkeypatch.setattr(hub_client, "_GET_PATIENCE", ((0,), 1))
    monkeypatch.setattr(paths, "MODELS", tmp_path / "models")
    monkeypatch.setattr(run_lock, "RUN", tmp_path / "run")
    with Hub(REPO, FILES) as hub:
        yield Bench(tmp_path, hub, capsys)


def test_a_model_is_listed_fetched_and_complete_the_second_time(bench: Bench) -> None:
    code, out, err = bench.fetch("tiny")
    assert (code, err) == (0, "")
    assert f"2 files, 100 KiB, of {REPO} (revision {bench.hub.branches['main'][:10]})" in out
    assert "model.safetensors" in out
    assert "skipped, as vLLM does not read them: 1 file, 8.8 KiB, such as original/model.pth" in out
    assert f"{bench.models / REPO} is complete: 2 files, 100 KiB" in out
    assert "systemctl start vllm@tiny" in out
    asked = len(bench.hub.requests)
    code, out, _ = bench.fetch("tiny")
    assert (code, len(bench.hub.requests)) == (0, asked)
    assert "is complete" in out


def test_a_dry_run_lists_and_changes_nothing(bench: Bench) -> None:
    code, out, _ = bench.fetch("tiny", "--dry-run")
    assert code == 0
    assert f"would fetch 100 KiB of {REPO} into {bench.models / REPO}, as user vllm" in out
    assert list(bench.models.iterdir()) == []


def test_a_newer_revision_is_fetched_when_asked_for(bench: Bench) -> None:
    bench.fetch("tiny")
    commit = bench.hub.push(FILES | {"config.json": b'{"new": 1}'})
    code, out, _ = bench.fetch("tiny", "--revision", "main")
    assert (code, commit[:10] in out, "systemctl restart vllm@tiny" in out) == (0, True, True)
    assert (bench.models / REPO / "config.json").read_bytes() == b'{"new": 1}'
    assert bench.hub.sent("model.safetensors") == len(FILES["model.safetensors"])


def test_a_damaged_model_is_repaired_at_its_own_revision(bench: Bench) -> None:
    bench.fetch("tiny")
    bench.hub.push({"config.json": b"newer", "model.safetensors": b"newer"})
    (bench.models / REPO / "config.json").unlink()
    assert bench.fetch("tiny")[0] == 0
    assert (bench.models / REPO / "config.json").read_bytes() == FILES["config.json"]


def test_no_room_is_told_before_any_file(bench: Bench) -> None:
    bench.config.write_text(bench.config.read_text().replace("keep_free: 0", "keep_free: 1000T"))
    code, _, err = bench.fetch("tiny")
    assert code == 1
    assert err.startswith("vllm-safe: not enough disk space: ")
    assert bench.hub.sent("model.safetensors") == 0


def test_a_trouble_is_two_lines_and_exit_1(bench: Bench) -> None:
    bench.hub.gated = True
    code, _, err = bench.fetch("tiny")
    assert code == 1
    assert len(err.splitlines()) == 2
    assert "is gated" in err
    assert f"engine.hub_token_file in {bench.config}" in err


def test_wrong_bytes_leave_no_model(bench: Bench) -> None:
    bench.hub.faults = [Fault(f"/cdn/{bench.hub.branches['main']}/model.safetensors", body=bytes(102400))]
    code, _, err = bench.fetch("tiny")
    assert (code, "does not match that of the hub" in err) == (1, True)
    assert not (bench.models / REPO).exists()


def test_a_token_comes_from_a_file_that_root_alone_reads(bench: Bench) -> None:
    bench.hub.gated, bench.hub.token = True, "hf-secret"
    token = bench.config.with_name("hub-token")
    token.write_text(bench.hub.token)
    token.chmod(0o600)
    bench.config.write_text(bench.config.read_text().replace("engine: {", f"engine: {{hub_token_file: {token}, "))
    assert bench.fetch("tiny")[0] == 0
    token.chmod(0o644)
    code, _, err = bench.fetch("tiny", "--revision", "main")
    assert code == 1
    assert "engine.hub_token_file: " in err
    assert f"chmod 600 {token}" in err


def test_a_command_and_a_folder_need_no_fetch(bench: Bench) -> None:
    assert "there is nothing to fetch" in bench.fetch("other")[1]
    code, _, err = bench.fetch("folder")
    assert (code, f"the folder {bench.own} does not exist" in err) == (1, True)
    bench.own.mkdir()
    (bench.own / "config.json").write_text("{}")
    code, out, _ = bench.fetch("folder")
    assert (code, "there is nothing to fetch" in out) == (0, True)


def test_a_folder_that_somebody_copied_there_is_left_alone(bench: Bench) -> None:
    folder = bench.models / REPO
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    code, out, _ = bench.fetch("tiny")
    assert (code, "was not fetched by vllm-safe" in out) == (0, True)
    assert bench.hub.requests == []


def test_a_name_that_the_file_does_not_have(bench: Bench) -> None:
    code, _, err = bench.fetch("tinny")
    assert code == 2
    assert "Did you mean tiny?" in err


def test_without_an_engine(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_client, "PYTHON", bench.models / "nothing")
    code, _, err = bench.fetch("tiny")
    assert (code, "vllm-safe install" in err) == (1, True)


def test_a_program_that_dies_or_talks_nonsense(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    for result in (Outcome("signal", 9, "", ""), Outcome("exit-code", 1, "Oops\n", "ImportError: x\n"), Outcome("success", 0, "[1]\n", "")):
        monkeypatch.setattr(AsVllm, "outcome", lambda _task, result=result: result)
        code, _, err = bench.fetch("tiny")
        assert code == 1
        assert "could not ask" in err
    for files in ('["x"]', '["x", Infinity, 0]', '["x", 1e400, 0]'):
        answer = f'{{"commit": "c", "files": [{files}]}}\n'
        monkeypatch.setattr(AsVllm, "outcome", lambda _task, answer=answer: Outcome("success", 0, answer, ""))
        assert "the output of the downloader is invalid" in bench.fetch("tiny")[2]


def test_a_proxy_with_a_password_is_said_not_to_be_used(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    monkeypatch.setenv("HTTPS_PROXY", "http://me:hunter2@proxy.example:3128")
    code, out, err = bench.fetch("tiny")
    assert code == 0
    assert err.startswith("warning: the proxy in HTTPS_PROXY contains credentials and is not used: ")
    assert "hunter2" not in out + err
