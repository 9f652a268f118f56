"""The checklist of `vllm-safe check`: the machine, then each model. The checks that can refuse a start are in start_checks.py."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from vllm_safe.check.check_facts import Inspection, MeasuredDisk, active_units
from vllm_safe.check.kernel_log_findings import check_kernel_log
from vllm_safe.common.errors import Failure
from vllm_safe.common.findings import Finding, failed, passed, warned
from vllm_safe.common.kernfs import MODELS_SLICE
from vllm_safe.common.key_file import Key
from vllm_safe.common.sizes import MIB, format_size, format_span, parse_amount
from vllm_safe.config.settings import Config
from vllm_safe.decide.demand_units import DEMAND_SERVICE, GATEWAY_SERVICE, socket_of
from vllm_safe.decide.limits import EACH_UNIT, Budget, are_in_force, unit_of
from vllm_safe.decide.serve_command import host_and_port
from vllm_safe.decide.start_checks import (
    CHECKS,
    LOOPBACK,
    POWER_SERVICE,
    Situation,
    check_admin_earlyoom,
    check_cgroups,
    check_key,
    check_port,
    check_power,
    check_swap,
)
from vllm_safe.driver.card_findings import check_each_card
from vllm_safe.driver.driver_findings import check_driver
from vllm_safe.earlyoom.earlyoom_arguments import decide_earlyoom_arguments as earlyoom_arguments
from vllm_safe.host.disk_facts import disks_of
from vllm_safe.host.host_facts import Host
from vllm_safe.host.rig_findings import check_hardware
from vllm_safe.power.power_decision import decide_power, describe_power, title_cards
from vllm_safe.room.room_decision import fit_together
from vllm_safe.tunables.tunable_decision import decide_tunables

EARLYOOM = "earlyoom.service"
CGROUPS = Path("/sys/fs/cgroup")
_NEVER_OVERCOMMIT = 2
_SHM = re.compile(r"/dev/shm:(?:\S*,)?size=(\d+(?:\.\d+)?[KMGT%]?)", re.IGNORECASE)  # noqa: S108 - of the unit, not of the machine
_LEAST_SHM = 240 * MIB  # vllm/distributed/device_communicators/shm_broadcast.py:492: ten chunks of 24 MiB, checked before they are made
_MOST_PAIRS = 6  # pairs of models that are listed
_LEAST_READ = 64 * MIB  # less comes from a disk's own cache
_KNOWS_CLASSES = frozenset({"mq-deadline", "bfq"})


@dataclass(frozen=True)
class MachineFacts:
    """Everything that the checks of the machine depend on."""

    config: Config
    host: Host
    budget: Budget
    seen: Inspection
    swap_refused: Failure | None = None  # why the swapfile cannot be created or changed


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


def check_hard_disks(at: MachineFacts) -> Finding | None:
    """Check whether the I/O schedulers of the hard disks honour the I/O class that the guard gives a model."""
    hard_disks = {disk.name: disk.scheduler for disk in at.seen.disks.values() if disk.rotational}
    if not hard_disks:
        return None
    blind = [name for name, scheduler in hard_disks.items() if scheduler not in _KNOWS_CLASSES]
    if blind:
        what = f"hard disk {blind[0]} uses the I/O scheduler {hard_disks[blind[0]]}: logins wait behind a model's swap I/O"
        return warned(what, f"echo mq-deadline > /sys/block/{blind[0]}/queue/scheduler; a udev rule makes it permanent")
    known = ", ".join(f"{name} uses {scheduler}" for name, scheduler in hard_disks.items())
    return passed(f"logins have I/O priority over models on hard disks: {known}")


def check_overcommit(at: MachineFacts) -> Finding | None:
    """Check that overcommit is possible: CUDA maps 17-20 GB per process without using them, and safetensors maps whole shards."""
    if at.seen.overcommit != _NEVER_OVERCOMMIT:
        return None
    return failed("vm.overcommit_memory is 2: CUDA and safetensors cannot map the memory that they need", "sysctl vm.overcommit_memory=0")


def check_compiler(at: MachineFacts) -> Finding | None:
    """Check for a compiler: Triton compiles C, and torch C++, when a model first starts."""
    if all(model.command for model in at.config.models.values()):
        return None
    missing = [name for name, there in (("g++", at.seen.compiler), ("python3-dev", at.seen.headers)) if not there]
    if missing:
        return warned(
            "no C++ compiler or no Python headers (Python.h): vLLM may fail at its first start", f"apt install {' '.join(missing)}"
        )
    return passed("a C++ compiler and the Python headers are installed, for Triton and torch")


def check_cards_of_machine(at: MachineFacts) -> Finding | None:
    """Check whether NVIDIA's driver and the cards meet the requirements of the engine."""
    return check_driver(at.seen.driver, at.seen.cuda) if at.seen.driver else None


def check_power_limits(at: MachineFacts) -> Finding | None:
    """Check whether the cards accept the configured power limits, and have them while a model runs."""
    if at.seen.power is None:
        return None
    if at.seen.power.problem:
        return failed(f"the power limits of the cards cannot be read: {at.seen.power.problem}", at.seen.power.hint)
    plan = decide_power(at.config, at.seen.power.cards)
    if plan.problems:
        return failed("; ".join(plan.problems), "Correct gpu.power_limit in config.yaml: until then no model is started.")
    limits = describe_power(plan, at.seen.power.cards)
    other = [card for card in at.seen.power.cards if plan.limits.get(card.uuid, card.limit) != card.limit]
    if other and active_units(at.seen.units, map(unit_of, at.config.models)):
        what = f"a model is running, but the power limit of {title_cards(other)} differs from config.yaml ({limits})"
        return warned(what, f"systemctl restart {POWER_SERVICE}")
    return passed(f"power limits while a model runs: {limits}")


def check_gateway(at: MachineFacts) -> Finding | None:
    """Check that the gateway can run, is running, and requires a key if other machines can send requests."""
    section, key = at.config.gateway, at.seen.gateway_key
    if not section.enabled:
        return None
    listen = host_and_port(section.host, section.port)
    if not at.seen.aiohttp:
        return failed("the gateway is enabled, but python3-aiohttp is not installed", "apt install python3-aiohttp")
    if problem := _find_key_problem(section.host, key):
        return problem
    if not active_units(at.seen.units, [GATEWAY_SERVICE]):
        return warned("the gateway is enabled, but not running", f"systemctl enable --now {GATEWAY_SERVICE}")
    return passed(f"the gateway listens on {listen} for all models")


def _find_key_problem(host: str, key: Key | None) -> Finding | None:
    if key and key.hidden:
        return warned("the key of the gateway can only be checked by root", "Run: sudo vllm-safe check")
    if key and key.problem:
        return failed(key.problem, key.way_out)
    if not key and host not in LOOPBACK:
        return warned(f"the gateway listens on {host} without a key", "Set gateway.api_key_file.")
    return None


def check_room(at: MachineFacts) -> Finding | None:
    """Return the pairs of models that cannot be up together, judging by what they need, if one of them is on demand."""
    gateway = at.seen.gateway
    if gateway is None:
        return None
    pairs = [
        (one.name, other.name)
        for one, other in combinations(gateway.models, 2)
        if (one.on_demand or other.on_demand) and not fit_together((one, other), gateway)
    ]
    if not pairs:
        return passed("models on demand: any two models fit together")
    listed = ", ".join(f"{one} and {other}" for one, other in pairs[:_MOST_PAIRS]) + (", and others" if len(pairs) > _MOST_PAIRS else "")
    return passed(f"models on demand: these pairs do not fit together, so one makes room for the other: {listed}")


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
    check_power_limits,
    check_gateway,
    check_room,
)


def check_machine(at: MachineFacts) -> tuple[Finding, ...]:
    """Return the findings about the machine, which concern every model."""
    return (*(finding for check in MACHINE if (finding := check(at))), *_check_rig(at.seen))


def _check_rig(seen: Inspection) -> Iterator[Finding]:
    """Yield the findings on the cards and on the hardware around them."""
    if seen.driver:
        yield from check_each_card(seen.driver)
    if seen.log:
        yield from check_kernel_log(seen.log)
    if seen.rig:
        yield from check_hardware(seen.rig)


def check_model_disk(at: Situation, seen: Inspection) -> Finding | None:
    """Check which disk the model is read from, and whether the kernel swaps to the same one."""
    if at.facts.model is None or not seen.disks:
        return None
    disks = disks_of(at.host, at.facts.model.folder, seen.disks)
    if not disks:
        return passed(f"{at.name}: the disk that has its files is not known to this kernel")
    named = " and ".join(map(str, disks))
    if any(disk.rotational for disk in disks if disk in seen.swap_disks):
        what = f"{at.name} is read from {named}, to which the machine also swaps: each waits for the other's seeks"
        return warned(what, "Set swap.file to a path on another disk, or move the model to one.")
    return passed(f"{at.name} is read from {named}")


def check_shared_memory(at: Situation) -> Finding | None:
    """Check that /dev/shm, of which each model has one of its own, has room for vLLM's queues between processes."""
    found = _SHM.search(at.facts.units.get(unit_of(at.name), {}).get("TemporaryFileSystem", ""))
    if found is None or at.model.command is not None:
        return None
    try:
        size = parse_amount(found[1]).of(at.host.memory)
    except ValueError:
        return None
    what = f"{at.name} has a /dev/shm of its own, of {format_size(size)} ({found[1]}); what is in it counts as RAM of the model"
    if at.server.world_size > 1 and size < _LEAST_SHM:
        hint = f"systemctl edit {unit_of(at.name)}: in [Service], TemporaryFileSystem=/dev/shm:mode=1777,nosuid,nodev,size=1G"
        return failed(f"{what}; vLLM needs {format_size(_LEAST_SHM)} in one piece", hint)
    return passed(what)


def check_pace(at: Situation, seen: Inspection, measured: MeasuredDisk | None) -> Finding:
    """Return how fast the disk of a model was read, and what that means for its load."""
    disks = disks_of(at.host, at.facts.model.folder, seen.disks) if at.facts.model else ()
    name = " and ".join(map(str, disks)) or f"the disk of {at.name}"
    if measured is None:
        what = f"{name} was not measured: neither a file of {at.name} nor the swapfile could be read past the page cache"
        return warned(what, f"As root, after: vllm-safe fetch {at.name}")
    if measured.pace.size < _LEAST_READ:
        what = f"{name} was not measured: the largest file of {at.name} has only {format_size(measured.pace.size)}"
        return warned(what, f"After: vllm-safe fetch {at.name}")
    rate = measured.pace.rate
    what = f"{name}: {format_size(int(rate))} a second in sequence ({format_size(measured.pace.size)} of {measured.file})"
    if not measured.total:
        return passed(what)
    return passed(f"{what}; to read {at.name} once, {format_size(measured.total)}, takes {format_span(max(1.0, measured.total / rate))}")


def check_demand_socket(at: Situation, seen: Inspection) -> Finding | None:
    """Check that requests reach a model on demand."""
    if not at.model.on_demand:
        return None
    listen = host_and_port(at.model.host, at.model.port)
    if seen.units.get(socket_of(at.name), {}).get("ActiveState") == "active":
        return passed(f"{at.name} is on demand: a request to {listen} starts it")
    if any(port == at.model.port for _, port in at.host.listening):
        way_out = f"Find it with: ss -ltnp 'sport = :{at.model.port}'. Stop it, or change models.{at.name}.port."
        return failed(f"port {at.model.port} is already in use, so no request for {at.name} arrives there", way_out)
    return warned(f"{at.name} is on demand, but nothing listens for its requests", f"systemctl enable --now {DEMAND_SERVICE}")


def check_answer(at: Situation, seen: Inspection) -> Finding:
    """Check that the server of a running model lists the model."""
    unit = unit_of(at.name)
    served = seen.served.get(at.name)
    if served is None:
        state = seen.units.get(unit, {}).get("ActiveState", "inactive")
        if state == "failed":
            return failed(f"{unit} has failed", f"systemctl status {unit}")
        return passed(f"{unit} is {state}" + ("" if state != "inactive" else f"; to start it: systemctl start {unit}"))
    if served.problem:
        return failed(served.problem, f"journalctl -u {unit}")
    if at.model.command is None and at.name not in served.models:
        return failed(
            f"another server is using the port of {at.name}, and lists {', '.join(served.models) or 'nothing'}", f"systemctl restart {unit}"
        )
    return passed(f"{unit} serves {', '.join(served.models) or at.name}")


def is_stopped(name: str, seen: Inspection) -> bool:
    """Whether no process of the model `name` is there."""
    return seen.units.get(unit_of(name), {}).get("ActiveState", "inactive") in {"inactive", "failed"}


def check_running_model(at: Situation, seen: Inspection) -> tuple[Finding, ...]:
    """Return the findings about one model, beside those of check_machine.

    The port of a running model is not checked: the model itself listens on it.
    """
    stopped = is_stopped(at.name, seen)
    hidden = at.facts.key is not None and at.facts.key.hidden
    skipped = {check_cgroups, check_swap, check_power} | (set() if stopped else {check_port}) | ({check_key} if hidden else set())
    start = [finding for check in CHECKS if check not in skipped and (finding := check(at))]
    if hidden:
        start.append(warned(f"the API key of {at.name} can only be checked by root", "Run: sudo vllm-safe check"))
    socket = check_demand_socket(at, seen)
    return (*start, *([socket] if socket else []), check_answer(at, seen))
