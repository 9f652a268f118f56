"""The RAM that is protected for the operating system, whatever the models do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from vllm_safe.common.kernfs import SYSTEM_SLICES
from vllm_safe.common.sizes import MIB, Amount, format_size
from vllm_safe.config.settings import Config
from vllm_safe.decide.origin import Origin, origin_of
from vllm_safe.host.host_facts import Host


@dataclass(frozen=True)
class Decided:
    """A number, and the reason for it. Amounts of memory are in bytes."""

    value: int
    origin: Origin


@dataclass(frozen=True)
class AutoShare:
    """The meaning of `auto`: a percentage of RAM, up to a bound in bytes. A larger machine needs no more than the bound."""

    percent: int
    most: int

    def of(self, memory: int) -> int:
        """Return the share in bytes, on a machine with `memory` bytes of RAM."""
        return min(memory * self.percent // 100, self.most)


# With these shares logins worked in the testbed (1 GiB of RAM: 150M, 60M and 20M). The bounds are what sshd, journald, a login shell
# and systemd need in practice. For comparison, Meta's resctl-demo protects 768M (which it calls generous) for its critical services
# and 16M for init.scope, and Fedora's uresourced protects 10 % of RAM for the user.
AUTO: Mapping[str, AutoShare] = MappingProxyType(
    {"system": AutoShare(15, 1536 * MIB), "user": AutoShare(6, 768 * MIB), "init": AutoShare(2, 64 * MIB)}
)

# The kernel's share, in addition to the memory that it keeps free. On the testbed's 1 GiB the kernel uses about 20M that are charged to no
# cgroup; a large swap needs tables, which grow with it. Without this share the slices and the model add up to all of RAM, and each login
# begins with swapping out: tests/bench/DISK.md.
KERNEL = AutoShare(3, 384 * MIB)

# The share of each unit is `system` divided by this. Without a share of its own, a unit gets the protection of its slice in proportion to
# its memory usage, page cache included: where one service had just written a large file, sshd lost most of its pages when a model took its
# RAM (tests/bench/DISK.md).
EACH_UNIT = 10

# The MemoryMin= of a unit in a slice has no effect without that of the slice, which also extends to the units in it
# (memory_recursiveprot). sshd is in system.slice, the login shell in user.slice, systemd itself in init.scope: each needs its own.
UNITS: Mapping[str, str] = MappingProxyType(dict(zip(("system", "user", "init"), SYSTEM_SLICES, strict=True)))


@dataclass(frozen=True)
class Protection:
    """The RAM that models cannot have, in bytes.

    units: protected for each key of UNITS. kernel, cards: used by the kernel and the cards' driver, outside of every cgroup limit.
    each_unit: the part of `units` that is protected for each single service or session.
    """

    units: Mapping[str, Decided]
    each_unit: Decided
    kernel: Decided
    cards: Decided

    @property
    def total(self) -> int:
        """All RAM that a model cannot have, in bytes."""
        return sum(kept.value for kept in self.units.values()) + self.kernel.value + self.cards.value


def decide_protection(config: Config, host: Host) -> Protection:
    """Decide how much RAM the configuration protects for the operating system on this machine."""
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
        note += f", plus {format_size(kept_free)} that the kernel keeps free"
    return Decided(whole_pages(share.of(host.memory) + kept_free), Origin(source, note))


def _each_unit(config: Config, host: Host, system: int) -> Decided:
    amount, source = config.protect.each_unit, origin_of(config, "protect.each_unit").source
    if amount is not None:
        return Decided(whole_pages(amount.of(host.memory)), Origin(source, str(amount)))
    return Decided(whole_pages(system // EACH_UNIT), Origin(source, "auto: a tenth of protect.system"))


def whole_pages(size: int) -> int:
    """Round `size` bytes down to whole pages, as the kernel does, so that systemctl shows the value that is enforced."""
    return size - size % 4096
