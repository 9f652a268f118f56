"""Checks of the machine's disks, compiler and GPUs."""

from __future__ import annotations

from collections.abc import Iterator

from vllm_safe.check.check_facts import Inspection, active_units
from vllm_safe.check.kernel_log_findings import check_kernel_log
from vllm_safe.check.machine_facts import MachineFacts
from vllm_safe.common.findings import Finding, failed, passed, warned
from vllm_safe.decide.limits import unit_of
from vllm_safe.decide.start_checks import (
    POWER_SERVICE,
)
from vllm_safe.driver.card_findings import check_each_card
from vllm_safe.driver.driver_findings import check_driver
from vllm_safe.host.rig_findings import check_hardware
from vllm_safe.power.power_decision import decide_power, describe_power, title_cards

_KNOWS_CLASSES = frozenset({"mq-deadline", "bfq"})


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
        return failed(f"the power limits of the GPUs cannot be read: {at.seen.power.problem}", at.seen.power.hint)
    plan = decide_power(at.config, at.seen.power.cards)
    if plan.problems:
        return failed("; ".join(plan.problems), "Correct gpu.power_limit in config.yaml: until then no model is started.")
    limits = describe_power(plan, at.seen.power.cards)
    other = [card for card in at.seen.power.cards if plan.limits.get(card.uuid, card.limit) != card.limit]
    if other and active_units(at.seen.units, map(unit_of, at.config.models)):
        what = f"a model is running, but the power limit of {title_cards(other)} differs from config.yaml ({limits})"
        return warned(what, f"systemctl restart {POWER_SERVICE}")
    return passed(f"power limits while a model runs: {limits}")


def check_rig(seen: Inspection) -> Iterator[Finding]:
    """Yield the findings on the cards and on the hardware around them."""
    if seen.driver:
        yield from check_each_card(seen.driver)
    if seen.log:
        yield from check_kernel_log(seen.log)
    if seen.rig:
        yield from check_hardware(seen.rig)
