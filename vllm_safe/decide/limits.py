"""The limits of one model, and of all models together, in the units of the kernel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from vllm_safe.common.kernfs import MODELS_SLICE
from vllm_safe.common.sizes import MIB, Amount, format_size
from vllm_safe.config.settings import Config
from vllm_safe.decide.origin import Origin, Sourced, origin_of
from vllm_safe.decide.protect import UNITS, Decided, Protection, decide_protection, whole_pages
from vllm_safe.host.host_facts import Host

# Bytes. A Python interpreter with its libraries mapped cannot work with less: such a limit is a mistake, not a small machine.
LEAST_MEMORY = 128 * MIB


def unit_of(name: str) -> str:
    """Return the name of the service of the model `name`."""
    return f"vllm@{name}.service"


def prepare_of(name: str) -> str:
    """Return the name of the service that prepares a start of the model `name`."""
    return f"vllm-safe-prepare@{name}.service"


@dataclass(frozen=True)
class DecidedLimits:
    """The limits of one model, under the names of their settings.

    Values are in the kernel's units: bytes, weights, a number of tasks, an oom_score_adj. The I/O scheduling class has systemd's name.
    """

    memory_max: Decided
    swap_max: Decided
    cpu_weight: Decided
    io_weight: Decided
    tasks_max: Decided
    io_scheduling_class: Sourced
    oom_score_adj: Decided

    @property
    def properties(self) -> dict[str, int]:
        """The properties of the unit for `systemctl set-property`. The settings of a process, which no cgroup has, are set in launch/."""
        return {
            "MemoryMax": self.memory_max.value,
            "MemorySwapMax": self.swap_max.value,
            "CPUWeight": self.cpu_weight.value,
            "IOWeight": self.io_weight.value,
            "TasksMax": self.tasks_max.value,
        }


# A property of a slice: the MemoryMin= of each unit in it that sets none itself. A running unit gets it at systemd's next reload.
# systemd 262 no longer has this property: it ignores it with a warning, and does not show it.
EACH_UNIT = "DefaultMemoryMin"

# Two models would add up to twice these properties. The slice that holds both gets the largest value of each, so that they share it.
SHARED = ("MemoryMax", "MemorySwapMax", "CPUWeight", "IOWeight")


@dataclass(frozen=True)
class Budget:
    """The division of this machine between the models and the operating system, decided once for all code that acts on it."""

    protection: Protection
    default: DecidedLimits  # the section `limits`, for a model that is not in the configuration
    models: Mapping[str, DecidedLimits]

    def of(self, name: str) -> DecidedLimits:
        """Return the limits of the model `name`."""
        return self.models.get(name, self.default)

    @property
    def units(self) -> dict[str, dict[str, int]]:
        """The properties, by unit, of the units that hold all models and the operating system."""
        every = [limits.properties for limits in self.models.values()] or [self.default.properties]
        kept = self.protection
        values = {key: {"MemoryMin": decided.value, EACH_UNIT: kept.each_unit.value} for key, decided in kept.units.items()}
        return {
            MODELS_SLICE: {key: max(properties[key] for properties in every) for key in SHARED},
            **{unit: {name: values[key][name] for name in PROPERTIES[unit]} for key, unit in UNITS.items()},
        }


def decide_budget(config: Config, host: Host) -> Budget:
    """Decide the memory protection of the operating system, and the limits of every model."""
    protection = decide_protection(config, host)
    models = {name: _decide_limits(config, host, protection, name) for name in config.models}
    return Budget(protection, _decide_limits(config, host, protection, ""), MappingProxyType(models))


def _decide_limits(config: Config, host: Host, protection: Protection, name: str) -> DecidedLimits:
    """Decide the limits of the model `name`, or those of the section `limits` where the file has no such model."""

    def plain(key: str) -> Decided:
        value, origin = _asked(config, name, key)
        return Decided(value, origin)

    return DecidedLimits(
        memory_max=_memory_max(config, host, protection, name),
        swap_max=_swap_max(config, host, name),
        cpu_weight=plain("cpu_weight"),
        io_weight=plain("io_weight"),
        tasks_max=plain("tasks_max"),
        io_scheduling_class=Sourced(*_asked(config, name, "io_scheduling_class")),
        oom_score_adj=plain("oom_score_adjust"),
    )


# Every property that vllm-safe sets, by unit. `apply --undo` reverts these and no others.
PROPERTIES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        unit_of("*"): (*SHARED, "TasksMax"),
        MODELS_SLICE: SHARED,
        **{unit: ("MemoryMin", EACH_UNIT) if unit.endswith(".slice") else ("MemoryMin",) for unit in UNITS.values()},
    }
)


# The units among them that exist on every machine.
MANAGED_UNITS = tuple(unit for unit in PROPERTIES if "*" not in unit)


def are_in_force(properties: Mapping[str, int], shown: Mapping[str, str]) -> bool:
    """Whether `systemctl show` has all of `properties`, apart from one that this version of systemd does not have."""
    unknown = {EACH_UNIT} if shown and EACH_UNIT not in shown else set()
    return all(shown.get(name) == str(value) for name, value in properties.items() if name not in unknown)


def _memory_max(config: Config, host: Host, protection: Protection, name: str) -> Decided:
    """Return the smaller of the configured limit and of the RAM that the operating system and the cards' driver leave."""
    amount, origin = _asked(config, name, "memory_max")
    ceiling = amount.of(host.memory)
    room = max(0, host.memory - protection.total)
    if ceiling <= room:
        return Decided(whole_pages(ceiling), Origin(origin.source, _of_all(amount, host.memory, "RAM")))
    parts = [f"{format_size(sum(part.value for part in protection.units.values()))} for the system (protect)"]
    if protection.kernel.value:
        parts.append(f"{format_size(protection.kernel.value)} for the kernel (protect.kernel)")
    if protection.cards.value:
        parts.append(f"{format_size(protection.cards.value)} for the driver of {host.gpus} GPUs (protect.per_gpu)")
    note = f"{format_size(host.memory)} RAM minus {', '.join(parts)}; memory_max asks for {format_size(ceiling)}"
    return Decided(whole_pages(room), Origin("this machine", note))


def _swap_max(config: Config, host: Host, name: str) -> Decided:
    """Decide the swap limit in bytes.

    It is never a percentage: systemd takes MemorySwapMax=90% as 90 % of RAM (load-fragment.c, physical_memory_scale).
    """
    amount, origin = _asked(config, name, "swap_max")
    asked = amount.of(host.swap)
    if asked <= host.swap:
        return Decided(whole_pages(asked), Origin(origin.source, _of_all(amount, host.swap, "swap")))
    return Decided(host.swap, Origin("this machine", f"all {format_size(host.swap)} of swap; swap_max asks for {format_size(asked)}"))


def _asked(config: Config, name: str, key: str) -> tuple[Any, Origin]:
    """Return the model's own value of the setting `key`, or else that of the section `limits`, and its origin."""
    model = config.models.get(name)
    own = getattr(model.limits, key) if model else None
    value = getattr(config.limits, key) if own is None else own
    return value, origin_of(config, f"models.{name}.limits.{key}", f"limits.{key}")


def _of_all(amount: Amount, total: int, what: str) -> str:
    return f"{amount} of {format_size(total)} {what}" if amount.is_percent else ""
