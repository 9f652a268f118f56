"""Facts about one start of a model, beside those of host/host_facts.py: what is installed, what systemd says, the key, earlier starts."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vllm_safe.common import paths
from vllm_safe.common.key_file import Key, read_key
from vllm_safe.engine.engine_facts import EngineFacts, read_engine
from vllm_safe.models.model_files import ModelFiles, read_model_files


@dataclass(frozen=True)
class Starts:
    """What earlier starts left behind. `at`: restarts that count, in seconds since boot; `counted`: systemd's NRestarts at the last."""

    counted: int = 0
    at: tuple[float, ...] = ()

    def to_json(self) -> str:
        """The text of the file."""
        return json.dumps({"counted": self.counted, "at": self.at}) + "\n"


@dataclass(frozen=True)
class StartFacts:
    """What the start of one model stands on."""

    now: float = 0.0  # seconds since boot ...
    asleep: float = 0.0  # ... and how many of them systemd's monotonic times leave out
    server: bool = False  # there is a program to run
    engine: EngineFacts | None = None  # None for a `command:` server
    model: ModelFiles | None = None  # None for a `command:` server
    addresses: frozenset[str] = frozenset()  # of the name or address that the server is to listen on; none where it cannot be looked up
    swap_file: str = ""  # `swap.file` as /proc/swaps has it: without links
    key: Key | None = None  # None: none asked for
    old_key: bool = False  # an earlier start left a copy of a key
    starts: Starts = Starts()
    units: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # properties as systemctl shows them


def boot_clock() -> float:
    """Seconds since boot, time asleep included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def time_asleep() -> float:
    """How much of it the monotonic clock, which is that of systemd's times, leaves out."""
    return max(0.0, boot_clock() - time.monotonic())


def read_starts(path: Path) -> Starts:
    """The log of automatic restarts; empty if there is none, or none that can be read."""
    try:
        values = json.loads(path.read_text())
        return Starts(int(values["counted"]), tuple(float(moment) for moment in values["at"]))
    except (OSError, ValueError, KeyError, TypeError):
        return Starts()


def _is_there(path: Path) -> bool:
    """Whether the file is there. False for who may not look: then nothing is removed either."""
    try:
        return path.exists()
    except PermissionError:
        return False


def _addresses(host: str) -> frozenset[str]:
    """The addresses of a host, as the kernel's tables of sockets have them.

    Before a start only /etc/hosts and services of this machine are asked for a name: vllm-safe-prepare@.service has no network.
    """
    try:
        return frozenset(str(row[4][0]) for row in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM))
    except OSError:
        return frozenset()


def read_start_facts(  # noqa: PLR0913 - each is a fact about another thing
    name: str,
    *,
    server: str,
    path: str,
    host: str,
    model: str | None,
    swap_file: Path,
    key_file: Path | None,
    units: Mapping[str, Mapping[str, str]],
) -> StartFacts:
    """The facts for the start of `name`. `server`: the program, sought in `path`; `model`: hub id, path or None."""
    return StartFacts(
        now=boot_clock(),
        asleep=time_asleep(),
        server=any(os.access(Path(folder, server), os.X_OK) for folder in path.split(":")),  # an absolute one replaces the folder
        engine=read_engine() if model else None,
        model=read_model_files(model) if model else None,
        addresses=_addresses(host),
        swap_file=os.path.realpath(swap_file),
        key=read_key(key_file) if key_file else None,
        old_key=_is_there(paths.credential_file(name)),
        starts=read_starts(paths.starts_file(name)),
        units=units,
    )
