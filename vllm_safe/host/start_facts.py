"""Facts about one start of a model, beside those of host_facts.py: the engine and files, systemd's units, the key, earlier starts."""

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
from vllm_safe.common.untrusted_paths import find_program
from vllm_safe.contract.state_file import state_file
from vllm_safe.contract.untrusted_files import read_state
from vllm_safe.engine.engine_facts import EngineFacts, read_engine
from vllm_safe.models.model_files import ModelFiles, read_model_files
from vllm_safe.power.power_facts import PowerNote, read_power_note


@dataclass(frozen=True)
class Starts:
    """The log of earlier starts.

    at: the times of the restarts that count, in seconds since boot. counted: systemd's NRestarts at the last of them.
    """

    counted: int = 0
    at: tuple[float, ...] = ()

    def to_json(self) -> str:
        """Return the content of the file."""
        return json.dumps({"counted": self.counted, "at": self.at}) + "\n"


@dataclass(frozen=True)
class StartFacts:
    """The facts that the start of one model depends on."""

    now: float = 0.0  # seconds since boot
    asleep: float = 0.0  # the seconds among them that systemd's monotonic times leave out
    server: bool = False  # the program of the server exists
    engine: EngineFacts | None = None  # None for a `command:` server
    model: ModelFiles | None = None  # None for a `command:` server
    addresses: frozenset[str] = frozenset()  # of the host that the server is to listen on; empty where the name cannot be resolved
    swap_file: str = ""  # `swap.file` with symbolic links resolved, as in /proc/swaps
    key: Key | None = None  # None: no key is configured
    old_key: bool = False  # an earlier start left a copy of a key
    starts: Starts = Starts()
    ended_elsewhere: bool = False  # the last start ended because of another machine of the model
    power: PowerNote | None = None  # None: no power limit is set
    units: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # properties as in `systemctl show`
    environment: Mapping[str, str] = field(default_factory=dict)  # Environment= of the model's unit


def boot_clock() -> float:
    """Return the seconds since boot, including suspend."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def time_asleep() -> float:
    """Return the seconds since boot that the monotonic clock, which systemd uses, leaves out."""
    return max(0.0, boot_clock() - time.monotonic())


def read_starts(path: Path) -> Starts:
    """Read the log of automatic restarts. It is empty if the file is missing or damaged."""
    try:
        values = json.loads(path.read_text())
        return Starts(int(values["counted"]), tuple(float(moment) for moment in values["at"]))
    except (OSError, ValueError, KeyError, TypeError):
        return Starts()


def _last_cause(name: str) -> str:
    """Return the cause of the last end of a model, as its main process reported it; "" if it is not known."""
    state = read_state(state_file(name))
    return state.cause if state else ""


def _is_there(path: Path) -> bool:
    """Whether the file exists. Return False if this user may not look: such a user removes nothing either."""
    try:
        return path.exists()
    except PermissionError:
        return False


def _is_there_to_run(server: str, path: str, *, own_engine: bool) -> bool:
    """Whether the program is found in `path`. A link that is not followed counts as found: only the start can tell where it leads.

    In an engine that vllm-safe installed, no link leads elsewhere, so there it does not count.
    """
    found = {find_program(Path(folder, server)) for folder in path.split(":")}  # an absolute path replaces the folder
    return True in found or (None in found and not own_engine)


def _addresses(host: str) -> frozenset[str]:
    """Return the addresses of a host, in the notation of the kernel's socket tables.

    Before a start, names are resolved only by /etc/hosts and services of this machine: vllm-safe-prepare@.service has no network.
    """
    try:
        return frozenset(str(row[4][0]) for row in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM))
    except OSError:
        return frozenset()


def read_start_facts(  # noqa: PLR0913 - each parameter is for another fact
    name: str,
    *,
    server: str,
    path: str,
    host: str,
    model: str | None,
    swap_file: Path,
    key_file: Path | None,
    units: Mapping[str, Mapping[str, str]],
    environment: Mapping[str, str],
) -> StartFacts:
    """Read the facts for the start of the model `name`.

    server: the program, searched in `path`. model: a hub id, a path, or None for a `command:` server.
    """
    return StartFacts(
        now=boot_clock(),
        asleep=time_asleep(),
        server=_is_there_to_run(server, path, own_engine=bool(model)),
        engine=read_engine() if model else None,
        model=read_model_files(model) if model else None,
        addresses=_addresses(host),
        swap_file=os.path.realpath(swap_file),
        key=read_key(key_file) if key_file else None,
        old_key=_is_there(paths.credential_file(name)),
        starts=read_starts(paths.starts_file(name)),
        ended_elsewhere=_last_cause(name) == "node",
        power=read_power_note(),
        units=units,
        environment=environment,
    )
