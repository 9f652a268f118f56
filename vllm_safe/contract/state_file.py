"""The state file of a model: /run/vllm-safe/state/NAME.json, written by the main process at most once a second.

A reader that is root must not trust its content: user vllm owns the directory.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from vllm_safe.contract.small_files import write_whole

STATE_FOLDER = Path("/run/vllm-safe/state")  # vllm:vllm 0755, made by tmpfiles.d
GPU_FOLDER = Path("/run/vllm-safe/gpus")  # owned by vllm-record, made by tmpfiles.d: data from the recorder to the main process
FRESH = 10.0  # seconds for which the recorder's figure for busy GPUs is valid: it writes each second
KEPT_LINES = 200  # the last lines that the server printed

# In this order. A `command:` server is only ever waiting, starting, ready, stopping or ended.
PHASES = (
    "waiting",  # before an automatic restart, or for the other machines of the model
    "starting",
    "importing",
    "initializing",  # CUDA, and the connections of the workers: NCCL, gloo
    "loading",
    "profiling",
    "compiling",
    "capturing",  # CUDA graphs
    "warming-up",
    "ready",
    "stopping",
    "ended",
)

# The reasons for which the main process ended the run, or the kinds of end that it saw.
CAUSES = (
    "stopped",  # on request of systemd
    "room",  # on request of systemd, to make room for another model
    "idle",  # a model on demand had no request for its idle_timeout
    "refused",  # never started: the launch file contains the reason
    "gave-up",  # never started: too many automatic restarts
    "no-start",  # the kernel refused the server a process or memory
    "start-timeout",
    "stall",  # no progress of any kind while loading
    "hang",  # requests running without a token, health failing, a process stopped or gone
    "exited",  # the server ended by itself
    "node",  # another machine that serves the same model ended
    "network",  # another machine that serves the same model has not been heard from, or a connection to it broke
)


class LoadProgress(NamedTuple):
    """The progress of a phase. read and total in bytes, rate in bytes per second, left in seconds.

    counted: the bytes were counted by the loader of this package; otherwise they are estimated.
    """

    read: int
    total: int | None = None
    rate: float | None = None
    left: float | None = None
    counted: bool = False


class ReportedMemory(NamedTuple):
    """What vLLM printed about the memory of its GPUs while it started, in bytes: GiB with two decimals, times 2**30."""

    weights: tuple[int, ...] = ()  # of each worker, in the order of their ranks
    cache: int | None = None  # what is left for the KV cache on one GPU
    tokens: int | None = None  # the number that the KV cache holds


class CardUsage(NamedTuple):
    """The usage of the GPUs, as the recorder reports it."""

    used: int = 0  # bytes in use on all GPUs, by any program
    busy: float | None = None  # the share of the last second in which the least busy GPU of the model was busy; None: unknown


NO_CARDS = CardUsage()


class State(NamedTuple):
    """The content of the state file. Times are in Unix seconds."""

    name: str
    run: str  # $INVOCATION_ID of the unit
    pid: int  # of the main process
    time: float  # of this writing
    started: float
    phase: str  # one of PHASES
    since: float  # the beginning of the phase
    text: str = ""  # the last STATUS=
    progress: LoadProgress | None = None
    running: int | None = None  # requests, as is `waiting`
    waiting: int | None = None
    tokens: int | None = None  # tokens generated since the start
    cause: str = ""  # one of CAUSES, once the run ends
    reason: str = ""
    log: tuple[str, ...] = ()  # the last KEPT_LINES lines of the server
    error: str = ""  # the error that ended the server, whole, as the server printed it
    served: bool = False  # whether the server was ever ready
    memory: ReportedMemory | None = None
    used: float | None = None  # when a request was last seen; None if the model is not serving, or if a person started it
    idle_timeout: float = 0.0  # seconds without a request after which the model ends; 0: it stays up
    nodes: str = ""  # the machines of the model to which this one is connected, with their phases: "gpu2: ready"


def state_file(name: str) -> Path:
    """Return the path of the state file of a model."""
    return STATE_FOLDER / f"{name}.json"


def end_file(name: str) -> Path:
    """Return the path of the file with systemd's report of the end of the unit, written by launch/stop_post.py."""
    return STATE_FOLDER / f"{name}.end.json"


def gpu_file(name: str) -> Path:
    """Return the path of the file with the last GPU usage that the recorder read. It does not exist on a machine without GPUs.

    Its content is "USED BUSY", or "USED" where the share is unknown. A newer recorder may append further words.
    """
    return GPU_FOLDER / name


def cards_file(name: str) -> Path:
    """Return the path of the file with the last reading of all GPUs, as in a sample, for `vllm-safe status`. No model has such a name."""
    return GPU_FOLDER / f"{name}:cards"


def cards_to_line(cards: CardUsage) -> str:
    """Return the content of the GPU file."""
    return f"{cards.used}\n" if cards.busy is None else f"{cards.used} {cards.busy:.2f}\n"


def cards_from_line(line: str) -> CardUsage:
    """Read the line that `cards_to_line` wrote. Raises ValueError for any other text."""
    used, *rest = line.split() or [""]
    return CardUsage(int(used), float(rest[0]) if rest else None)


def read_card_usage(name: str, last: CardUsage) -> CardUsage:
    """Read the GPU usage from the recorder's file, since NVML would cost this process 10 MB.

    If the file cannot be read, or is older than FRESH, `busy` is None; without a readable file, `used` is that of `last`.
    """
    with suppress(OSError, ValueError):
        file = gpu_file(name)
        age = time.time() - file.stat().st_mtime
        last = cards_from_line(file.read_text(encoding="ascii"))
        return last if age < FRESH else last._replace(busy=None)
    return last._replace(busy=None)


def to_json(state: State) -> str:
    """Return the content of the state file."""
    parts = {"progress": state.progress and state.progress._asdict(), "memory": state.memory and state.memory._asdict()}
    return json.dumps(state._asdict() | parts, ensure_ascii=False) + "\n"


def write_state(state: State) -> None:
    """Put the state of a model in place. An error is ignored: it must not end a model."""
    _write(state_file(state.name), to_json(state))


def write_end(name: str, end: Mapping[str, object]) -> None:
    """Put systemd's report of an end in place. An error is ignored."""
    _write(end_file(name), json.dumps(end, ensure_ascii=False) + "\n")


def _write(path: Path, text: str) -> None:
    with suppress(OSError):
        write_whole(str(path), text.encode(errors="replace"), sync=False)
