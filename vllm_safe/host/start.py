"""Facts about one start of a model, beside those of host/facts.py: what is installed, what systemd says, the key, earlier starts."""

from __future__ import annotations

import json
import os
import socket
import stat
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vllm_safe import paths
from vllm_safe.errors import Failure
from vllm_safe.host.below import find_program
from vllm_safe.host.engine import EngineFacts, read_engine
from vllm_safe.host.models import ModelFiles, read_model
from vllm_safe.host.trust import open_trusted_folder

_LONGEST_KEY = 4096


@dataclass(frozen=True)
class Key:
    """The content of a key file, or the `problem` with it. The text is in no repr."""

    path: Path
    text: str = field(default="", repr=False)
    problem: str = ""
    way_out: str = ""
    hidden: bool = False  # we may not look: only root can say how it is


@dataclass(frozen=True)
class Starts:
    """What earlier starts left behind. `at`: restarts that count, in seconds since boot; `counted`: systemd's NRestarts at the last."""

    counted: int = 0
    at: tuple[float, ...] = ()

    def to_json(self) -> str:
        """The text of the file."""
        return json.dumps({"counted": self.counted, "at": self.at}) + "\n"


@dataclass(frozen=True)
class Ground:
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
    environment: Mapping[str, str] = field(default_factory=dict)  # Environment= of the model's unit


def read_key(path: Path) -> Key:
    """A file with one key, which root alone may read. Links to it are not followed, so that nobody can point at another secret."""
    try:
        folder = open_trusted_folder(path.parent)
    except Failure as failure:
        return Key(path, problem=failure.message, way_out=failure.hint, hidden=isinstance(failure.__cause__, PermissionError))
    except OSError as error:
        return _bad_key(path, f"{path}: {error.strerror}")
    try:
        # O_NONBLOCK: a pipe of that name must not stop us
        handle = os.open(path.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
        with os.fdopen(handle, "rb") as file:
            return _judge_key(path, os.fstat(file.fileno()), file.read(_LONGEST_KEY + 1))
    except PermissionError:
        return Key(path, problem=f"{path} may not be read", way_out="Only root may read it: run this as root.", hidden=True)
    except FileNotFoundError:
        return _bad_key(path, f"there is no {path}")
    except OSError as error:
        return _bad_key(path, f"cannot read {path}: {error.strerror}")
    finally:
        os.close(folder)


def _judge_key(path: Path, status: os.stat_result, content: bytes) -> Key:
    if not stat.S_ISREG(status.st_mode):
        return _bad_key(path, f"{path} is no regular file")
    if status.st_mode & 0o077 or status.st_uid not in {0, os.geteuid()}:
        return _bad_key(path, f"{path} holds a key, and others than root may read or change it (mode {stat.S_IMODE(status.st_mode):04o})")
    words = content.split()
    if len(words) != 1 or len(content) > _LONGEST_KEY or not (words[0].isascii() and words[0].decode("ascii").isprintable()):
        return _bad_key(path, f"{path} is not one line with one key")
    return Key(path, words[0].decode())


def _bad_key(path: Path, problem: str) -> Key:
    way_out = f"Make one: (umask 077; openssl rand -hex 32 > {path}), or: chown root {path}; chmod 600 {path}"
    return Key(path, problem=problem, way_out=way_out)


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


def _is_there_to_run(server: str, path: str, *, own_engine: bool) -> bool:
    """Whether the program is found in `path`. A link of user vllm's that leads elsewhere counts: only the start can tell what is behind.

    In an engine of ours nothing leads elsewhere, so there it does not count.
    """
    found = {find_program(Path(folder, server)) for folder in path.split(":")}  # an absolute program replaces the folder
    return True in found or (None in found and not own_engine)


def _addresses(host: str) -> frozenset[str]:
    """The addresses of a host, as the kernel's tables of sockets have them.

    Before a start only /etc/hosts and services of this machine are asked for a name: vllm-safe-prepare@.service has no network.
    """
    try:
        return frozenset(str(row[4][0]) for row in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM))
    except OSError:
        return frozenset()


def read_ground(  # noqa: PLR0913 - each is a fact about another thing
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
) -> Ground:
    """The facts for the start of `name`. `server`: the program, sought in `path`; `model`: hub id, path or None."""
    return Ground(
        now=boot_clock(),
        asleep=time_asleep(),
        server=_is_there_to_run(server, path, own_engine=bool(model)),
        engine=read_engine() if model else None,
        model=read_model(model) if model else None,
        addresses=_addresses(host),
        swap_file=os.path.realpath(swap_file),
        key=read_key(key_file) if key_file else None,
        old_key=_is_there(paths.credential_file(name)),
        starts=read_starts(paths.starts_file(name)),
        units=units,
        environment=environment,
    )
