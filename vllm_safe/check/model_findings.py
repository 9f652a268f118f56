"""The checklist of one model. The checks that can refuse its start are in decide/start_checks.py."""

from __future__ import annotations

import re

from vllm_safe.check.check_facts import Inspection, MeasuredDisk
from vllm_safe.common.findings import Finding, failed, passed, warned
from vllm_safe.common.sizes import MIB, format_size, format_span, parse_amount
from vllm_safe.decide.demand_units import DEMAND_SERVICE, socket_of
from vllm_safe.decide.limits import unit_of
from vllm_safe.decide.server_address import host_and_port
from vllm_safe.decide.start_checks import (
    CHECKS,
    Situation,
    check_cgroups,
    check_key,
    check_port,
    check_power,
    check_swap,
)
from vllm_safe.host.disk_facts import disks_of

_SHM = re.compile(r"/dev/shm:(?:\S*,)?size=(\d+(?:\.\d+)?[KMGT%]?)", re.IGNORECASE)  # noqa: S108 - of the unit, not of the machine
_LEAST_SHM = 240 * MIB  # vllm/distributed/device_communicators/shm_broadcast.py:492: ten chunks of 24 MiB, checked before they are made
_LEAST_READ = 64 * MIB  # less comes from a disk's own cache


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
    what = f"{at.name} has a /dev/shm of its own, of {format_size(size)} ({found[1]}); its content counts as RAM of the model"
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
