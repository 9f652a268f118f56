"""Fixtures that run the real program, with the real huggingface_hub, against a hub on loopback."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.fakes.hub import Hub
from vllm_safe.models import as_engine
from vllm_safe.models.as_engine.hub_download.download_command import main

PROGRAM = Path(as_engine.__file__).parent
REPO = "acme/tiny-model"
WEIGHTS = Random(1).randbytes(3_000_000)  # noqa: S311 -- the same in each run
FILES = {
    "config.json": b'{"architectures": ["Tiny"]}',
    "empty.txt": b"",
    "model.safetensors": WEIGHTS,
    "tokenizer/vocab.json": b"{}" * 3000,
    "original/consolidated.pth": b"the same again" * 1000,
}


@dataclass(frozen=True)
class Answer:
    """The result of a run of the program."""

    status: int
    answer: dict[str, Any]
    stderr: str


@dataclass
class Downloader:
    """Runner of the program for REPO, with `models` as the folder of all models."""

    hub: Hub
    models: Path
    repo: str = REPO
    token_folder: Path | None = None
    program: tuple[str, ...] = (str(PROGRAM),)

    @property
    def environment(self) -> dict[str, str]:
        """Return the environment that the service sets."""
        values = {"HF_ENDPOINT": self.hub.url, "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HOME": str(self.models.parent / "hf-home")}
        return values | ({"CREDENTIALS_DIRECTORY": str(self.token_folder)} if self.token_folder else {})

    def arguments(self, action: str, *more: str) -> list[str]:
        """Return the command line, with three quick retries."""
        return [action, "--repo", self.repo, "--models", str(self.models), *["--delay=0.01"] * 3, "--longest-wait=3", *more]

    def start(self, action: str, *more: str) -> subprocess.Popen[str]:
        """Start the program as the service does, as a process of its own."""
        command = [sys.executable, "-I", "-B", *self.program, *self.arguments(action, *more)]
        environment = self.environment | {"PATH": os.environ["PATH"]}
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def run(self, action: str, *more: str) -> Answer:
        """Run it to its end, in this process: importing huggingface_hub for each run would take most of the time."""
        stdout, stderr = io.StringIO(), io.StringIO()
        before = os.umask(0o077)
        try:
            with pytest.MonkeyPatch.context() as patch, redirect_stdout(stdout), redirect_stderr(stderr):
                for name, value in self.environment.items():
                    patch.setenv(name, value)
                status = main(self.arguments(action, *more))
        finally:
            os.umask(before)
            logging.disable(logging.NOTSET)
        return Answer(status, json.loads(stdout.getvalue()), stderr.getvalue())

    def run_process(self, action: str, *more: str) -> Answer:
        """Run the program to its end as the service does."""
        process = self.start(action, *more)
        try:
            stdout, stderr = process.communicate(timeout=30)
        finally:
            process.kill()
        assert "Traceback" not in stderr, stderr
        return Answer(process.returncode, json.loads(stdout), stderr)

    @property
    def folder(self) -> Path:
        """The final folder of the model."""
        return self.models / self.repo

    @property
    def partial(self) -> Path:
        """The folder of an interrupted download."""
        return self.models / ".partial" / self.repo.replace("/", "--")

    def broken_off(self) -> int:
        """Bytes of the partial file."""
        return sum(path.stat().st_size for path in self.partial.glob("blobs/*.incomplete"))


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub(REPO, FILES) as running:
        yield running


@pytest.fixture
def downloader(hub: Hub, tmp_path: Path) -> Downloader:
    return Downloader(hub, tmp_path / "models")


@pytest.fixture
def token(downloader: Downloader, tmp_path: Path) -> str:
    """Give the program a token that the hub accepts."""
    downloader.token_folder = tmp_path
    downloader.hub.token = tmp_path.name + "-secret"
    (tmp_path / "hub-token").write_text(f"{downloader.hub.token}\n")
    return downloader.hub.token


def tree_of(folder: Path) -> dict[str, bytes]:
    """Return the contents of a folder, without the manifest."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != ".vllm-safe.json"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}
