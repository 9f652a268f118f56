"""Read the facts for `vllm-safe check`, and run its checks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from vllm_safe.apply.situation import has_demand, read_gateway, read_situation, uses_gpus
from vllm_safe.check import check_facts
from vllm_safe.check.check_facts import Inspection
from vllm_safe.check.checks import check_machine
from vllm_safe.check.machine_facts import MachineFacts
from vllm_safe.check.memory_findings import EARLYOOM
from vllm_safe.check.model_card_findings import CardSituation, check_model_on_cards
from vllm_safe.check.model_findings import check_model_disk, check_pace, check_running_model, check_shared_memory, is_stopped
from vllm_safe.check.model_needs import needs_of
from vllm_safe.check.node_findings import check_ways, ports_to_try
from vllm_safe.check.pace_steps import store_disk_pace
from vllm_safe.common.errors import Failure
from vllm_safe.common.findings import Finding
from vllm_safe.common.key_file import read_key
from vllm_safe.common.systemctl import show_properties
from vllm_safe.config.settings import Config
from vllm_safe.decide.demand_units import GATEWAY_SERVICE, socket_of
from vllm_safe.decide.limits import EACH_UNIT, decide_budget, unit_of
from vllm_safe.decide.node_options import find_rank
from vllm_safe.decide.protect import UNITS
from vllm_safe.decide.server_address import server_url
from vllm_safe.decide.start_checks import SWAP_SERVICE, Situation
from vllm_safe.driver.driver_facts import read_driver
from vllm_safe.earlyoom.earlyoom_defaults import admin_arguments
from vllm_safe.engine.engine_decision import cuda_of
from vllm_safe.engine.requirement_locks import read_lock
from vllm_safe.host.disk_facts import read_disks, read_swap_disks
from vllm_safe.host.host_facts import Host, SwapArea
from vllm_safe.host.node_facts import read_port_range, read_way, try_ports
from vllm_safe.host.rig_facts import read_hardware
from vllm_safe.models.model_files import read_model_json
from vllm_safe.power.power_facts import power_reading, read_power
from vllm_safe.swap.swap_decision import decide_swap
from vllm_safe.swap.swapfile_facts import read_swap

THIS_MACHINE = "this machine"


def run_checks(
    config: Config, host: Host, root: Path = Path("/"), *, only: str | None = None, measure: bool = False
) -> dict[str, tuple[Finding, ...]]:
    """Return the findings for the machine, then those for each model, or for one. A finding is not repeated for each model.

    only: the name of that one. measure: read each model's disk for some seconds.
    """
    seen, budget = _inspect(config, host, root), decide_budget(config, host)
    found = {THIS_MACHINE: check_machine(MachineFacts(config, host, budget, seen, _swap_refusal(config, host)))}
    reported = set(found[THIS_MACHINE])
    for name in [only] if only else config.models:
        cards = seen.driver.nvml.cards if seen.driver and uses_gpus(config, name) else ()
        at = read_situation(config, host, budget, name, cards)
        own = (*check_running_model(at, seen), *_check_nodes_of(at), *_check_hardware_of(at, seen, measure=measure))
        found[name] = tuple(finding for finding in own if finding not in reported)
        reported.update(own)
    return found


def _check_nodes_of(at: Situation) -> Iterator[Finding]:
    """Yield the findings on the other machines of a model."""
    rank = find_rank(at.model, at.host.name)
    if not at.model.nodes or rank is None:
        return
    others, ports = [name for place, name in enumerate(at.model.nodes) if place != rank], read_port_range()
    ways = [try_ports(read_way(name), ports_to_try(at.model, name, ports)) for name in others]
    yield from check_ways(at.name, at.model, rank, ways, ports)


def _check_hardware_of(at: Situation, seen: Inspection, *, measure: bool) -> Iterator[Finding]:
    """Yield the findings on the cards and the disk that one model would use."""
    if seen.driver and seen.rig and at.model.model:
        arguments = {option: sourced.value for option, sourced in at.server.arguments.items()}
        needs = needs_of(read_model_json(at.model.model, "config.json"), arguments)
        yield from check_model_on_cards(CardSituation(at, seen.driver, seen.rig, needs, is_stopped(at.name, seen)))
    yield from (found for found in (check_shared_memory(at), check_model_disk(at, seen)) if found)
    if measure and at.model.model:
        measured = check_facts.measure_disk(at.model.model, at.config.swap.file)
        store_disk_pace(at.model.model, measured)
        yield check_pace(at, seen, measured)


def _swap_refusal(config: Config, host: Host) -> Failure | None:
    try:
        decide_swap(config.swap, host, read_swap(config.swap.file, host))
    except Failure as failure:
        return failure
    return None


def _inspect(config: Config, host: Host, root: Path) -> Inspection:
    names = {name: unit_of(name) for name in config.models}
    properties = ("Id", "LoadState", "ActiveState", "MainPID", "StatusText", "MemoryMin", EACH_UNIT, "NRestarts")
    units = show_properties([EARLYOOM, SWAP_SERVICE, *UNITS.values(), *names.values(), *map(socket_of, names), GATEWAY_SERVICE], properties)
    running = check_facts.active_units(units, names.values())
    served = {}
    for name, model in config.models.items():
        if names[name] in running and model.command is None and not find_rank(model, host.name):
            key = read_key(model.api_key_file) if model.api_key_file else None
            if not (key and key.hidden):
                served[name] = check_facts.ask_models(server_url(model, "/v1/models"), key.text if key else "")
    needs_cards = config.engine.package == "vllm" and any(model.command is None for model in config.models.values())
    driver, disks = read_driver(root) if needs_cards else None, read_disks(root)
    planned = (SwapArea(str(config.swap.file), "file", config.swap.size, 0),) if config.swap.size else ()
    return check_facts.Inspection(
        disks=disks,
        swap_disks=read_swap_disks(host, (*host.swaps, *planned), disks, root),
        units=units,
        earlyoom=check_facts.read_earlyoom_arguments(int(units.get(EARLYOOM, {}).get("MainPID") or 0)),
        admin_earlyoom=admin_arguments(),
        overcommit=check_facts.read_overcommit(root),
        compiler=check_facts.has_compiler(),
        headers=check_facts.has_headers(),
        served=served,
        driver=driver,
        rig=read_hardware(root),
        log=check_facts.read_kernel_log(root) if driver and (driver.pci or driver.installed) else None,
        power=None if not config.gpu.power_limit else power_reading(driver.nvml) if driver else read_power(),
        gateway=read_gateway(config, Path(config.source), host, decide_budget(config, host)) if has_demand(config) else None,
        gateway_key=read_key(section.api_key_file) if (section := config.gateway).enabled and section.api_key_file else None,
        aiohttp=check_facts.has_aiohttp(root),
        cuda=cuda_of("vllm", config.engine.version, read_lock("vllm")) if needs_cards else None,
    )
