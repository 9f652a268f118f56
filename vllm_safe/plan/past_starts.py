"""The figures of earlier starts of a model, from its recorded runs: those of vLLM and those of the machine."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_safe.common.errors import Failure
from vllm_safe.common.paths import RUNS
from vllm_safe.contract.recorded_run import Run, Sample
from vllm_safe.contract.untrusted_files import read_reported_memory
from vllm_safe.plan.plan_question import Observed
from vllm_safe.plan.serving import read_serving
from vllm_safe.record.run_reader import list_runs, read_beginning, read_run

_MOST = 8  # runs that are read
_LEAST_LOADED = 1 << 28  # bytes: a smaller load shows the speed of the page cache, not of the disk
_VERSION = re.compile(r"vllm(?:-cpu)?-(\d{1,3})\.(\d{1,3})")


@dataclass(frozen=True)
class StartConditions:
    """The conditions that two starts must share for the figures of one to apply to the other."""

    model: str  # the folder
    engine: str = ""  # the folder of the engine, which has its version
    cards: tuple[tuple[str, str], ...] = ()  # address and name of each GPU of the machine
    visible: str | None = None  # CUDA_VISIBLE_DEVICES


@dataclass(frozen=True)
class PastStart:
    """An earlier start.

    peak: bytes of memory that all its processes had at most until it was ready, 0 if unknown; pace: bytes/s of its load, 0 if unknown.
    """

    observed: Observed
    peak: int = 0
    pace: float = 0.0


def engine_version(engine: str) -> tuple[int, int]:
    """Return the version in the name of an engine's folder, such as vllm-0.32.0; without one, the version of the shipped lock."""
    match = _VERSION.match(engine)
    return (int(match[1]), int(match[2])) if match else (0, 32)


def read_past_starts(name: str, now: StartConditions, folder: Path = RUNS) -> tuple[PastStart, ...]:
    """Return the earlier starts of a model under the same conditions, the newest last. Raises Failure if its runs cannot be read."""
    found: list[PastStart] = []
    for run in list_runs(name, folder)[:_MOST]:
        try:
            beginning = read_beginning(name, run, folder)
            observed = _observed(beginning, now)
            if observed:
                # The newest run is the best guide to RAM and the disk. Reading all samples of every run would take seconds.
                whole = read_run(name, run, folder).samples if not found else ()
                found.append(PastStart(observed, _peak(whole), _pace(whole)))
        except Failure:  # a run that is damaged, or that the recorder has just removed
            continue
    return tuple(reversed(found))


def identify_cards(cards: Iterable[object]) -> tuple[tuple[str, str], ...]:
    """Return the address and name of each GPU, from the result of read_pci_cards()."""
    return tuple((str(card.get("pci")), str(card.get("name"))) for card in cards if isinstance(card, dict))


def _observed(run: Run, now: StartConditions) -> Observed | None:
    start = run.start
    then = StartConditions(
        str(start.args.get("model", "")), start.versions.get("engine", ""), _cards(start.host), start.env.get("CUDA_VISIBLE_DEVICES")
    )
    reported = [memory for event in run.events if event.kind == "memory" and (memory := read_reported_memory(event.data))]
    if then != now or not reported:
        return None
    memory = reported[-1]
    serving = read_serving(start.args, start.env, engine_version(now.engine))
    return Observed(serving, memory.weights, memory.cache or 0, memory.tokens or 0)


def _cards(host: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    cards = host.get("cards")
    return identify_cards(cards) if isinstance(cards, list) else ()


def _peak(samples: tuple[Sample, ...]) -> int:
    """Return the most memory that the model used while it started. The memory of days of serving is no guide to the next start."""
    starting = (one for one in samples if one.phase not in {"ready", "stopping"})
    return max(((one.anon or 0) + (one.shmem or 0) + (one.swap or 0) for one in starting), default=0)


def _pace(samples: tuple[Sample, ...]) -> float:
    """Return the bytes per second at which the weights were read; 0 if too few were read."""
    loading = [one for one in samples if one.phase == "loading" and one.read is not None]
    if len(loading) < 2:
        return 0.0
    read, took = (loading[-1].read or 0) - (loading[0].read or 0), loading[-1].time - loading[0].time
    return read / took if read >= _LEAST_LOADED and took > 0 else 0.0
