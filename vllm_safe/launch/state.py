"""What the main process knows of its server, for others to read: /run/vllm-safe/state/NAME.json, at most once a second.

Whoever reads it as root trusts nothing in it: user vllm owns the folder.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

STATE_FOLDER = Path("/run/vllm-safe/state")  # vllm:vllm 0755, made by tmpfiles.d
GPU_FOLDER = Path("/run/vllm-safe/gpus")  # the recorder's, as tmpfiles.d makes it: what it says to the main process
FRESH = 10.0  # seconds for which what it says of how busy they are holds: it writes each second
KEPT_LINES = 200  # of what the server printed

# In this order; a `command:` server is only starting, ready and stopping.
PHASES = (
    "waiting",  # before an automatic restart
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

# Why the main process ended the run, or saw it end.
CAUSES = (
    "stopped",  # asked to, by systemd
    "refused",  # never started: the launch file says why
    "gave-up",  # never started: one automatic restart too many
    "no-start",  # the kernel had no process or no memory for it
    "start-timeout",
    "stall",  # no progress of any kind while loading
    "hang",  # requests running and no token, health failing, a process stopped or gone
    "exited",  # the server ended by itself
)


class Progress(NamedTuple):
    """How far a phase is. Bytes; rate in bytes per second; left in seconds."""

    read: int
    total: int | None = None
    rate: float | None = None
    left: float | None = None


class Cards(NamedTuple):
    """What the recorder says of the cards."""

    used: int = 0  # bytes of all of them, by whomever
    busy: float | None = None  # of those that the model uses, the share of the last second in which the least busy one was; None: unknown


NO_CARDS = Cards()


class State(NamedTuple):
    """The file. Times are Unix seconds."""

    name: str
    run: str  # $INVOCATION_ID of the unit
    pid: int  # of the main process
    time: float  # when this was written
    started: float
    phase: str  # one of PHASES
    since: float  # when the phase began
    text: str = ""  # what STATUS= says
    progress: Progress | None = None
    running: int | None = None  # requests
    waiting: int | None = None
    tokens: int | None = None  # generated since the start
    cause: str = ""  # one of CAUSES, once it ends
    reason: str = ""
    log: tuple[str, ...] = ()  # the last KEPT_LINES
    error: str = ""  # what it ended of: the cause in the server's own words, whole
    served: bool = False  # whether it was ever ready


def state_file(name: str) -> Path:
    """Where the state of a model is. Beside it, NAME.end.json: what systemd said when the unit had ended (see launch/ended.py)."""
    return STATE_FOLDER / f"{name}.json"


def end_file(name: str) -> Path:
    """See state_file."""
    return STATE_FOLDER / f"{name}.end.json"


def gpu_file(name: str) -> Path:
    """Cards, as the recorder of a model last heard of them: "USED BUSY", or "USED" where the share is not known. None without cards.

    Words that follow are a newer recorder's.
    """
    return GPU_FOLDER / name


def cards_to_line(cards: Cards) -> str:
    """The file's text."""
    return f"{cards.used}\n" if cards.busy is None else f"{cards.used} {cards.busy:.2f}\n"


def cards_from_line(line: str) -> Cards:
    """What `cards_to_line` wrote. ValueError if the text is anything else."""
    used, *rest = line.split() or [""]
    return Cards(int(used), float(rest[0]) if rest else None)


def read_cards(name: str, last: Cards) -> Cards:
    """What the recorder says now, since NVML would cost us 10 MB: of memory what it `last` said, where it says nothing."""
    with suppress(OSError, ValueError):
        file = gpu_file(name)
        age = time.time() - file.stat().st_mtime
        last = cards_from_line(file.read_text(encoding="ascii"))
        return last if age < FRESH else last._replace(busy=None)
    return last._replace(busy=None)


def to_json(state: State) -> str:
    """The file's text."""
    return json.dumps(state._asdict() | {"progress": state.progress and state.progress._asdict()}, ensure_ascii=False) + "\n"


def write_whole(path: Path, text: str) -> None:
    """Put a file in place, whole or not at all. Nothing that goes wrong here is worth a model."""
    new = f"{path}.new"
    with suppress(OSError):
        handle = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        with os.fdopen(handle, "wb") as file:
            file.write(text.encode(errors="replace"))
        os.replace(new, path)  # noqa: PTH105 - both are paths already
