"""Ask a hub for a model's files, as user vllm, with the engine's own huggingface_hub."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from vllm_safe import paths
from vllm_safe.apply import as_engine
from vllm_safe.apply.as_vllm import AsVllm, failure_of, network_environment
from vllm_safe.decide import hub_troubles
from vllm_safe.decide.fetch import FetchPlan, HubFile
from vllm_safe.decide.hub_troubles import Asked
from vllm_safe.errors import Failure, printable
from vllm_safe.host.below import find_program
from vllm_safe.sizes import TIB, format_size

PYTHON = paths.ENGINE / "bin/python"
_PROGRAM = Path(as_engine.__file__).parent
TOKEN = "hub-token"  # noqa: S105 - the name of the credential

_MOST = 1024 * TIB  # bytes: more is no file
# Seconds before each further try of a request that brought nothing, and most seconds in all that a busy hub is waited for.
_LIST_PATIENCE = ((1, 3), 60)
_GET_PATIENCE = ((1, 2, 5, 15, 30, 60), 900)

_ENVIRONMENT = {
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "0",
    "HF_HUB_DISABLE_XET": "1",  # it cannot go on with half a file, and takes gigabytes of RAM on a fast line
    "HF_XET_HIGH_PERFORMANCE": "0",
    "HF_HOME": str(paths.CACHE / "huggingface"),
}


@dataclass(frozen=True)
class Source:
    """Where one model comes from, and under which limits (bytes) it may be fetched."""

    asked: Asked
    memory_max: int
    swap_max: int

    @property
    def unit(self) -> str:
        """The name of the transient service."""
        return f"vllm-safe-fetch-{self.asked.name}"

    def task(self, action: str, purpose: str, patience: tuple[tuple[int, ...], int], *more: str) -> AsVllm:
        """The call of the program in as_engine/hub_download."""
        delays, longest = patience
        asked = self.asked
        return AsVllm(
            unit=self.unit,
            argv=(
                *(str(PYTHON), "-I", "-B", str(_PROGRAM), action, "--repo", asked.repo, "--models", str(paths.MODELS)),
                *(word for delay in delays for word in ("--delay", str(delay))),
                *("--longest-wait", str(longest)),
                *more,
            ),
            purpose=purpose,
            env={**network_environment(), **_ENVIRONMENT, "HF_ENDPOINT": asked.hub},
            writable=(paths.MODELS, paths.CACHE),
            credentials={TOKEN: Path(asked.token_file)} if asked.token_file else {},
            memory_max=self.memory_max,
            swap_max=self.swap_max,
        )

    def answer(self, task: AsVllm) -> Mapping[str, Any]:
        """Run the program to its end. Returns its answer; Failure says what went wrong."""
        outcome = task.outcome()
        answer = _answer_in(outcome.stdout)
        if "trouble" in answer:
            raise hub_troubles.failure_of(answer, self.asked, datetime.now().astimezone())
        if not outcome.ok or not answer:
            raise failure_of(task, outcome)
        return answer


def require_engine() -> None:
    """Failure if there is no engine whose python could fetch. That python is never run by root."""
    if find_program(PYTHON) is False:
        raise Failure("no engine is installed, and it is the engine that fetches models", hint="Run: vllm-safe install")


def list_files(source: Source) -> tuple[str, tuple[HubFile, ...]]:
    """The commit that the revision is now, and its files. Changes nothing."""
    revision = ("--revision", source.asked.revision) if source.asked.revision else ()
    task = source.task("list", f"ask {source.asked.hub} for the files of {source.asked.repo}", _LIST_PATIENCE, *revision)
    answer = source.answer(task)
    try:
        files = tuple(HubFile(_word(name), _bytes(size), _bytes(here)) for name, size, here in answer["files"])
        return _word(answer["commit"]), files
    except (KeyError, TypeError, ValueError):
        raise Failure("the downloader gave an answer that cannot be read", hint="Install the engine again: vllm-safe install") from None


@dataclass(frozen=True)
class FetchStep:
    """Transfer what is missing of a model, and put the whole in its place."""

    source: Source
    plan: FetchPlan

    def describe(self) -> str:
        """What is transferred, and where it ends up."""
        folder = paths.MODELS / self.plan.repo
        return f"fetch {format_size(self.plan.missing)} of {self.plan.repo} into {folder}, as user {paths.USER}"

    def run(self) -> None:
        """Do it; what has come is kept when it fails or is interrupted, and the next run goes on from there."""
        leave_out = (f"--leave-out={pattern}" for pattern in self.plan.patterns)
        task = self.source.task("get", f"fetch {self.plan.repo}", _GET_PATIENCE, "--revision", self.plan.commit, *leave_out)
        self.source.answer(task)


def _answer_in(text: str) -> dict[str, Any]:
    """The JSON object on the last line; {} if there is none."""
    try:
        answer = json.loads(text.splitlines()[-1])
    except (IndexError, ValueError, RecursionError):
        return {}
    return answer if isinstance(answer, dict) else {}


def _word(text: object) -> str:
    return printable(" ".join(str(text).split()))


def _bytes(size: object) -> int:
    """A size that can be: what a program of another user says is a number of any kind."""
    return min(max(0, int(str(size))), _MOST)
