"""Client of a hub for a model's files, run as user vllm with the engine's own huggingface_hub."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from vllm_safe.common import paths
from vllm_safe.common.errors import Failure
from vllm_safe.common.sizes import format_size
from vllm_safe.common.untrusted_paths import find_program
from vllm_safe.models import as_engine, hub_failure
from vllm_safe.models.fetch_decision import FetchPlan
from vllm_safe.models.hub_failure import HubRequest
from vllm_safe.models.hub_model import HubFile, HubModel, parse_hub_files, parse_hub_model
from vllm_safe.sandbox.run_as_vllm import AsVllm, network_environment, program_failure

PYTHON = paths.ENGINE / "bin/python"
_PROGRAM = Path(as_engine.__file__).parent
TOKEN = "hub-token"  # noqa: S105 - the name of the credential

# Seconds before each retry of a request that brought no bytes, and the most seconds in total to wait for a busy hub.
_LIST_PATIENCE = ((1, 3), 60)
_GET_PATIENCE = ((1, 2, 5, 15, 30, 60), 900)
_DESCRIBE_LIMIT = 180  # seconds for all of it

_ENVIRONMENT = {
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "0",
    "HF_HUB_DISABLE_XET": "1",  # Xet cannot resume a partial file, and takes gigabytes of RAM on a fast connection
    "HF_XET_HIGH_PERFORMANCE": "0",
    "HF_HOME": str(paths.CACHE / "huggingface"),
}

_Parsed = TypeVar("_Parsed")


@dataclass(frozen=True)
class Source:
    """The hub request for one model, and the limits in bytes under which it is fetched."""

    asked: HubRequest
    memory_max: int
    swap_max: int

    @property
    def unit(self) -> str:
        """Name of the transient service."""
        return f"vllm-safe-{self.asked.verb}-{self.asked.name.replace('/', '--')}"

    def task(self, action: str, purpose: str, patience: tuple[tuple[int, ...], int], *more: str) -> AsVllm:
        """Return the call of the program in as_engine/hub_download. patience: delays before retries, and the longest wait, in seconds."""
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
        """Run the program to its end and return its answer. Raises Failure if the hub or the program fails."""
        outcome = task.outcome()
        answer = _answer_in(outcome.stdout)
        if "trouble" in answer:
            raise hub_failure.hub_failure(answer, self.asked, datetime.now().astimezone())
        if not outcome.ok or not answer:
            raise program_failure(task, outcome)
        return answer


def require_engine(purpose: str = "fetch models", otherwise: str = "") -> None:
    """Raise Failure if no engine is installed, whose Python runs the download. That Python is never run as root.

    otherwise: what to do without it, as a sentence.
    """
    if find_program(PYTHON) is False:
        raise Failure(f"no engine is installed, which is needed to {purpose}", hint=f"Run: vllm-safe install   {otherwise}".rstrip())


def list_files(source: Source) -> tuple[str, tuple[HubFile, ...]]:
    """Return the commit to which the revision resolves now, and its files. Changes nothing."""
    revision = ("--revision", source.asked.revision) if source.asked.revision else ()
    task = source.task("list", f"ask {source.asked.hub} for the files of {source.asked.repo}", _LIST_PATIENCE, *revision)
    return _parsed(parse_hub_files, source.answer(task))


def ask_hub(source: Source) -> HubModel:
    """Return what a plan of the model is made from, as the hub has it now. Writes nothing."""
    task = source.task("describe", f"ask {source.asked.hub} about {source.asked.repo}", _LIST_PATIENCE)
    return _parsed(parse_hub_model, source.answer(replace(task, writable=(), time_limit=_DESCRIBE_LIMIT)))


def _parsed(parse: Callable[[Mapping[str, Any]], _Parsed], answer: Mapping[str, Any]) -> _Parsed:
    try:
        return parse(answer)
    except (KeyError, TypeError, ValueError):
        raise Failure("the output of the downloader is invalid", hint="Install the engine again: vllm-safe install") from None


@dataclass(frozen=True)
class FetchStep:
    """The step that transfers the missing bytes of a model and puts the complete model in place."""

    source: Source
    plan: FetchPlan

    def describe(self) -> str:
        """Describe the transfer and its destination."""
        folder = paths.MODELS / self.plan.repo
        return f"fetch {format_size(self.plan.missing)} of {self.plan.repo} into {folder}, as user {paths.USER}"

    def run(self) -> None:
        """Run the transfer. After a failure or an interruption the received bytes are kept, and the next run resumes from there."""
        leave_out = (f"--leave-out={pattern}" for pattern in self.plan.patterns)
        task = self.source.task("get", f"fetch {self.plan.repo}", _GET_PATIENCE, "--revision", self.plan.commit, *leave_out)
        self.source.answer(task)


def _answer_in(text: str) -> dict[str, Any]:
    """Return the JSON object on the last line, or {} if there is none."""
    try:
        answer = json.loads(text.splitlines()[-1])
    except (IndexError, ValueError, RecursionError):
        return {}
    return answer if isinstance(answer, dict) else {}
