"""Checks of the machine's RAM and swap, and of what protects logins: the guard, earlyoom, kernel tunables."""

from __future__ import annotations

from pathlib import Path

from vllm_safe.check.check_facts import active_units
from vllm_safe.check.machine_facts import MachineFacts
from vllm_safe.common.findings import Finding, failed, passed, warned
from vllm_safe.common.kernfs import MODELS_SLICE
from vllm_safe.common.sizes import format_size
from vllm_safe.decide.limits import EACH_UNIT, are_in_force, unit_of
from vllm_safe.decide.start_checks import (
    check_admin_earlyoom,
)
from vllm_safe.earlyoom.earlyoom_arguments import decide_earlyoom_arguments as earlyoom_arguments
from vllm_safe.tunables.tunable_decision import decide_tunables

EARLYOOM = "earlyoom.service"
CGROUPS = Path("/sys/fs/cgroup")
_NEVER_OVERCOMMIT = 2


def check_total(at: MachineFacts) -> Finding:
    """Return RAM and swap in total, and check that there is as much swap as the configuration asks for."""
    ram, swap = at.host.memory, at.host.swap
    total = f"{format_size(ram)} RAM + {format_size(swap)} swap = {format_size(ram + swap)}"
    if at.swap_refused:
        return failed(f"{total}; {at.swap_refused.message}", at.swap_refused.hint)
    wanted = at.config.swap.size
    if wanted is not None and swap < wanted * 0.99:  # mkswap uses one page, and sizes are rounded to whole pages
        return warned(
            f"{total}; config.yaml asks for {format_size(wanted)} of swap",
            "The first start creates it. To create it now: vllm-safe swap create",
        )
    return passed(total)


def check_pressure(at: MachineFacts) -> Finding:
    """Check whether the kernel provides pressure stall information (PSI)."""
    if at.host.pressure:
        return passed("pressure stall information (PSI) is available")
    return warned("pressure stall information (PSI) is not available", "Boot with psi=1 on the kernel command line.")


def check_guard(at: MachineFacts) -> Finding:
    """Check whether the guard is enabled, which slows down a model that stalls logins."""
    if not at.config.guard.enabled:
        return warned("the guard is disabled: nothing slows down a model that stalls logins", "Set guard.enabled to true in config.yaml.")
    return passed(
        "the guard is enabled, and runs while a model runs"
        + ("" if at.host.pressure else "; without PSI it uses RAM, swap and major faults")
    )


def check_tunables(at: MachineFacts) -> Finding | None:
    """Check whether the kernel tunables have the configured values while a model runs."""
    there = at.host.tunables
    other = [path for path, value in decide_tunables(at.config, there).items() if value != there[path]]
    if other and active_units(at.seen.units, map(unit_of, at.config.models)):
        return warned(
            f"a model is running, but these kernel tunables differ from config.yaml: {', '.join(other)}",
            "systemctl restart vllm-safe-tunables",
        )
    return passed(f"kernel tunables while a model runs: {', '.join(there)}") if there else None


def check_recursive(at: MachineFacts) -> Finding | None:
    """Check whether the memory protection of a slice extends to the services in it (memory_recursiveprot)."""
    mount = at.host.mount_of(CGROUPS)
    if "memory" not in at.host.controllers or mount is None or mount.fstype != "cgroup2" or "memory_recursiveprot" in mount.options:
        return None
    what = "cgroup2 is mounted without memory_recursiveprot: the memory protection of system.slice does not extend to sshd"
    return warned(what, "systemd has mounted it with this option since version 246: find out what remounted /sys/fs/cgroup.")


def check_protection(at: MachineFacts) -> Finding:
    """Check whether the memory protection of the operating system is in force now."""
    wanted = {unit: properties for unit, properties in at.budget.units.items() if unit != MODELS_SLICE}
    missing = [unit for unit, properties in wanted.items() if not are_in_force(properties, at.seen.units.get(unit, {}))]
    if missing:
        return warned(
            f"memory protection (MemoryMin=) is missing or outdated for {', '.join(missing)}",
            "The next start sets it. To set it now: vllm-safe apply",
        )
    total = sum(properties["MemoryMin"] for properties in wanted.values())
    alike = (
        ""
        if EACH_UNIT in at.seen.units.get("system.slice", {})
        else "; single services have no share of their own: this systemd has no DefaultMemoryMin="
    )
    return passed(f"{format_size(total)} of RAM are protected (MemoryMin=) for logins, services and systemd{alike}")


def check_earlyoom(at: MachineFacts) -> Finding:
    """Check that earlyoom runs with the configured arguments."""
    unit = at.seen.units.get(EARLYOOM, {})
    if unit.get("LoadState") != "loaded":
        return warned(
            "earlyoom is not installed: when RAM and swap are exhausted, only the kernel's OOM killer acts", "apt install earlyoom"
        )
    if unit.get("ActiveState") != "active":
        return failed(f"earlyoom is not running ({unit.get('ActiveState', 'unknown')})", "systemctl enable --now earlyoom")
    if not at.config.earlyoom.enabled:
        return passed(f"earlyoom is running with the administrator's arguments: {' '.join(at.seen.earlyoom)}")
    if at.seen.earlyoom != earlyoom_arguments(at.config):
        return failed(f"earlyoom is running with arguments that differ from config.yaml: {' '.join(at.seen.earlyoom)}", "vllm-safe apply")
    section = at.config.earlyoom
    return passed(f"earlyoom is running, and acts below {section.memory:g} % of RAM and {section.swap:g} % of swap")


def check_earlyoom_override(at: MachineFacts) -> Finding | None:
    """Check whether the arguments from config.yaml override those of the administrator."""
    return check_admin_earlyoom(at.config, at.seen.admin_earlyoom)


def check_overcommit(at: MachineFacts) -> Finding | None:
    """Check that overcommit is possible: CUDA maps 17-20 GB per process without using them, and safetensors maps whole shards."""
    if at.seen.overcommit != _NEVER_OVERCOMMIT:
        return None
    return failed("vm.overcommit_memory is 2: CUDA and safetensors cannot map the memory that they need", "sysctl vm.overcommit_memory=0")
