"""How much RAM the operating system keeps for itself, whatever the models do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from vllm_safe.common.kernfs import SYSTEM_SLICES
from vllm_safe.common.sizes import MIB, format_size
from vllm_safe.decide.origin import Origin, origin_of

if TYPE_CHECKING:
    from vllm_safe.common.sizes import Amount
    from vllm_safe.config.settings import Config
    from vllm_safe.host.host_facts import Host


@dataclass(frozen=True)
class Decided:
    """A number, and why it is this one. Bytes, where it is an amount of memory."""

    value: int
    origin: Origin


@dataclass(frozen=True)
class AutoShare:
    """What `auto` means: a percentage of RAM, and an upper bound in bytes, past which a machine needs no more."""

    percent: int
    most: int

    def of(self, memory: int) -> int:
        """Bytes, on a machine with `memory` bytes of RAM."""
        return min(memory * self.percent // 100, self.most)


# The shares are those that kept logins alive in our testbed (1 GiB of RAM: 150M, 60M and 20M); the bounds are what sshd, journald, a
# login shell and systemd need in practice. For comparison, Meta's resctl-demo keeps 768M (which it calls generous) for its critical
# services and 16M for init.scope, Fedora's uresourced 10 % of RAM for the user.
AUTO: Mapping[str, AutoShare] = MappingProxyType(
    {"system": AutoShare(15, 1536 * MIB), "user": AutoShare(6, 768 * MIB), "init": AutoShare(2, 64 * MIB)}
)

# Beside what it keeps free. On the testbed's 1 GiB it holds about 20M that no cgroup has; a large swap needs tables, which grow with it.
# Without this share the slices and the model add up to all of RAM, and each login begins with swapping out: tests/bench/DISK.md.
KERNEL = AutoShare(3, 384 * MIB)

# Of `system`. Without a share of its own a unit has what is kept for its slice in proportion to all that it has, page cache included: where
# one service had just written a large file, sshd lost most of its pages when a model took its RAM: tests/bench/DISK.md.
EACH_UNIT = 10

# MemoryMin= of a unit below a slice is worth nothing without the slice's own, and flows down from it (memory_recursiveprot):
# sshd is in system.slice, the login shell in user.slice, systemd itself in init.scope. Each needs its own.
UNITS: Mapping[str, str] = MappingProxyType(dict(zip(("system", "user", "init"), SYSTEM_SLICES, strict=True)))


@dataclass(frozen=True)
class Protection:
    """Bytes kept for each of UNITS' keys, and bytes that the kernel and the cards' driver take where no limit sees them.

    each_unit: of the first, what a single service or session has before the others.
    """

    units: Mapping[str, Decided]
    each_unit: Decided
    kernel: Decided
    cards: Decided

    @property
    def total(self) -> int:
        """All that a model cannot have."""
        return sum(kept.value for kept in self.units.values()) + self.kernel.value + self.cards.value


def decide_protection(config: Config, host: Host) -> Protection:
    """What the configuration keeps for the operating system, on this machine."""
    units = {key: _kept(config, host, key, AUTO[key]) for key in UNITS}
    cards = host.gpus * config.protect.per_gpu.of(host.memory)
    origin = Origin(origin_of(config, "protect.per_gpu").source, f"{host.gpus} GPUs, {config.protect.per_gpu} each")
    kernel = _kept(config, host, "kernel", KERNEL, host.kept_free)
    return Protection(units, _each_unit(config, host, units["system"].value), kernel, Decided(cards, origin))


def _kept(config: Config, host: Host, key: str, share: AutoShare, kept_free: int = 0) -> Decided:
    amount: Amount | None = getattr(config.protect, key)
    source = origin_of(config, f"protect.{key}").source
    if amount is not None:
        return Decided(whole_pages(amount.of(host.memory)), Origin(source, str(amount)))
    note = f"auto: {share.percent} % of RAM, at most {share.most // MIB}M"
    if kept_free:
        note += f", and {format_size(kept_free)} that it keeps free"
    return Decided(whole_pages(share.of(host.memory) + kept_free), Origin(source, note))


def _each_unit(config: Config, host: Host, system: int) -> Decided:
    amount, source = config.protect.each_unit, origin_of(config, "protect.each_unit").source
    if amount is not None:
        return Decided(whole_pages(amount.of(host.memory)), Origin(source, str(amount)))
    return Decided(whole_pages(system // EACH_UNIT), Origin(source, "auto: a tenth of protect.system"))


def whole_pages(size: int) -> int:
    """The kernel counts in pages: rounded here, so that what systemctl shows is what is enforced."""
    return size - size % 4096
