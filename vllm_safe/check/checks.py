"""The checklist of `vllm-safe check`: the machine, then each model. What makes a start impossible stands in start_checks.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vllm_safe.check.check_facts import active_units
from vllm_safe.common.findings import Finding, failed, passed, warned
from vllm_safe.common.kernfs import MODELS_SLICE
from vllm_safe.common.sizes import format_size
from vllm_safe.decide.limits import EACH_UNIT, Budget, are_in_force, unit_of
from vllm_safe.decide.start_checks import CHECKS, Situation, check_admin_earlyoom, check_cgroups, check_key, check_port, check_swap
from vllm_safe.driver.driver_findings import check_driver
from vllm_safe.earlyoom.earlyoom_arguments import decide_earlyoom_arguments as earlyoom_arguments
from vllm_safe.tunables.tunable_decision import decide_tunables

if TYPE_CHECKING:
    from vllm_safe.check.check_facts import Inspection
    from vllm_safe.common.errors import Failure
    from vllm_safe.config.settings import Config
    from vllm_safe.host.host_facts import Host

EARLYOOM = "earlyoom.service"
CGROUPS = Path("/sys/fs/cgroup")
_NEVER_OVERCOMMIT = 2
_KNOWS_CLASSES = frozenset({"mq-deadline", "bfq"})


@dataclass(frozen=True)
class MachineFacts:
    """All that the checks of the machine look at."""

    config: Config
    host: Host
    budget: Budget
    seen: Inspection
    swap_refused: Failure | None = None  # why the swapfile cannot be made or changed


def check_total(at: MachineFacts) -> Finding:
    """The plan's first check: RAM and swap together."""
    ram, swap = at.host.memory, at.host.swap
    total = f"{format_size(ram)} RAM + {format_size(swap)} swap = {format_size(ram + swap)}"
    if at.swap_refused:
        return failed(f"{total}; {at.swap_refused.message}", at.swap_refused.hint)
    wanted = at.config.swap.size
    if wanted is not None and swap < wanted * 0.99:  # mkswap takes a page, and sizes are rounded to pages
        return warned(f"{total}; config.yaml asks for {format_size(wanted)} of swap", "The first start makes it, or: vllm-safe swap create")
    return passed(total)


def check_pressure(at: MachineFacts) -> Finding:
    """Whether the kernel tells how much is stalled."""
    if at.host.pressure:
        return passed("the kernel tells memory pressure (PSI)")
    return warned("the kernel does not tell memory pressure (PSI)", "Boot with psi=1 on the kernel's command line.")


def check_guard(at: MachineFacts) -> Finding:
    """Whether a model that keeps logins waiting is held back."""
    if not at.config.guard.enabled:
        return warned("the guard is switched off: nothing holds back a model that keeps logins waiting", "guard.enabled in config.yaml")
    return passed(
        "the guard is on, and runs while a model runs" + ("" if at.host.pressure else ": by RAM, swap and major faults, without PSI")
    )


def check_tunables(at: MachineFacts) -> Finding | None:
    """Whether the kernel is as it should be beside a model that runs."""
    there = at.host.tunables
    other = [path for path, value in decide_tunables(at.config, there).items() if value != there[path]]
    if other and active_units(at.seen.units, map(unit_of, at.config.models)):
        return warned(f"a model runs, and config.yaml has other values for {', '.join(other)}", "systemctl restart vllm-safe-tunables")
    return passed(f"kernel tunables while a model runs: {', '.join(there)}") if there else None


def check_recursive(at: MachineFacts) -> Finding | None:
    """Whether what is kept for a slice reaches the services in it."""
    mount = at.host.mount_of(CGROUPS)
    if "memory" not in at.host.controllers or mount is None or mount.fstype != "cgroup2" or "memory_recursiveprot" in mount.options:
        return None
    what = "cgroup2 is mounted without memory_recursiveprot: RAM kept for system.slice does not reach sshd"
    return warned(what, "systemd mounts it so by itself since 246: see what remounted /sys/fs/cgroup.")


def check_protection(at: MachineFacts) -> Finding:
    """Whether RAM is kept for the operating system now."""
    wanted = {unit: properties for unit, properties in at.budget.units.items() if unit != MODELS_SLICE}
    missing = [unit for unit, properties in wanted.items() if not are_in_force(properties, at.seen.units.get(unit, {}))]
    if missing:
        return warned(f"no RAM, or another amount, is kept for {', '.join(missing)}", "The next start sets it, or: vllm-safe apply")
    total = sum(properties["MemoryMin"] for properties in wanted.values())
    alike = "" if EACH_UNIT in at.seen.units.get("system.slice", {}) else "; none for each alone: this systemd has no DefaultMemoryMin="
    return passed(f"{format_size(total)} of RAM are kept for logins, services and systemd{alike}")


def check_earlyoom(at: MachineFacts) -> Finding:
    """The plan's second check: earlyoom runs, with our arguments."""
    unit = at.seen.units.get(EARLYOOM, {})
    if unit.get("LoadState") != "loaded":
        return warned("earlyoom is not installed: nothing acts when RAM and swap are both gone, but the kernel", "apt install earlyoom")
    if unit.get("ActiveState") != "active":
        return failed(f"earlyoom does not run ({unit.get('ActiveState', 'unknown')})", "systemctl enable --now earlyoom")
    if not at.config.earlyoom.enabled:
        return passed(f"earlyoom runs with the admin's own arguments: {' '.join(at.seen.earlyoom)}")
    if at.seen.earlyoom != earlyoom_arguments(at.config):
        return failed(f"earlyoom runs with other arguments than config.yaml's: {' '.join(at.seen.earlyoom)}", "vllm-safe apply")
    section = at.config.earlyoom
    return passed(f"earlyoom runs, and acts below {section.memory:g} % of RAM and {section.swap:g} % of swap")


def check_earlyoom_override(at: MachineFacts) -> Finding | None:
    """Whether our arguments hide the admin's."""
    return check_admin_earlyoom(at.config, at.seen.admin_earlyoom)


def check_hard_disks(at: MachineFacts) -> Finding | None:
    """Whether the class that the guard gives a model at the disks means anything there."""
    if not at.seen.hard_disks:
        return None
    blind = [name for name, scheduler in at.seen.hard_disks.items() if scheduler not in _KNOWS_CLASSES]
    if blind:
        what = f"the scheduler {at.seen.hard_disks[blind[0]]} of the hard disk {blind[0]} has logins wait behind a model's swap"
        return warned(what, f"echo mq-deadline > /sys/block/{blind[0]}/queue/scheduler, and a udev rule to keep it")
    known = ", ".join(f"{name} has {scheduler}" for name, scheduler in at.seen.hard_disks.items())
    return passed(f"logins can go before a model at the hard disk: {known}")


def check_overcommit(at: MachineFacts) -> Finding | None:
    """CUDA maps 17-20 GB a process without using them, safetensors whole shards."""
    if at.seen.overcommit != _NEVER_OVERCOMMIT:
        return None
    return failed("vm.overcommit_memory is 2: CUDA and safetensors cannot map what they need", "sysctl vm.overcommit_memory=0")


def check_compiler(at: MachineFacts) -> Finding | None:
    """Triton compiles C, and torch C++, when a model first starts."""
    if all(model.command for model in at.config.models.values()):
        return None
    missing = [name for name, there in (("g++", at.seen.compiler), ("python3-dev", at.seen.headers)) if not there]
    if missing:
        return warned("no C++ compiler or no Python.h: vLLM may fail at its first start", f"apt install {' '.join(missing)}")
    return passed("a C++ compiler and Python's headers are there, for Triton and torch")


def check_cards_of_machine(at: MachineFacts) -> Finding | None:
    """Whether NVIDIA's driver and the cards are what the engine is made for."""
    return check_driver(at.seen.driver, at.seen.cuda) if at.seen.driver else None


MACHINE: tuple[Callable[[MachineFacts], Finding | None], ...] = (
    check_cgroups,
    check_total,
    check_protection,
    check_recursive,
    check_pressure,
    check_guard,
    check_earlyoom,
    check_earlyoom_override,
    check_hard_disks,
    check_tunables,
    check_overcommit,
    check_compiler,
    check_cards_of_machine,
)


def check_machine(at: MachineFacts) -> tuple[Finding, ...]:
    """What holds for every model."""
    return tuple(finding for check in MACHINE if (finding := check(at)))


def check_answer(at: Situation, seen: Inspection) -> Finding:
    """The plan's third check: the model list answers."""
    unit = unit_of(at.name)
    served = seen.served.get(at.name)
    if served is None:
        state = seen.units.get(unit, {}).get("ActiveState", "inactive")
        if state == "failed":
            return failed(f"{unit} has failed", f"systemctl status {unit}")
        return passed(f"{unit} is {state}" + ("" if state != "inactive" else f": systemctl start {unit}"))
    if served.problem:
        return failed(served.problem, f"journalctl -u {unit}")
    if at.model.command is None and at.name not in served.models:
        return failed(
            f"another server answers in its place, and lists {', '.join(served.models) or 'nothing'}", f"systemctl restart {unit}"
        )
    return passed(f"{unit} serves {', '.join(served.models) or at.name}")


def check_running_model(at: Situation, seen: Inspection) -> tuple[Finding, ...]:
    """What holds for one model, beside what check_machine says. Of a model that runs, the port is its own."""
    stopped = seen.units.get(unit_of(at.name), {}).get("ActiveState", "inactive") in {"inactive", "failed"}
    hidden = at.facts.key is not None and at.facts.key.hidden
    said = {check_cgroups, check_swap} | (set() if stopped else {check_port}) | ({check_key} if hidden else set())
    start = [finding for check in CHECKS if check not in said and (finding := check(at))]
    if hidden:
        start.append(warned(f"whether the API key of {at.name} is in order, only root can see", "Run it as root: sudo vllm-safe check"))
    return (*start, check_answer(at, seen))
