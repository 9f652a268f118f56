"""Read the facts for `vllm-safe check`, and run its checks."""

from __future__ import annotations

from vllm_safe.apply.situation import read_situation
from vllm_safe.check import check_facts
from vllm_safe.check.check_facts import Inspection
from vllm_safe.check.checks import EARLYOOM, MachineFacts, check_machine, check_running_model
from vllm_safe.common.errors import Failure
from vllm_safe.common.findings import Finding
from vllm_safe.common.key_file import read_key
from vllm_safe.common.systemctl import show_properties
from vllm_safe.config.settings import Config
from vllm_safe.decide.limits import EACH_UNIT, decide_budget, unit_of
from vllm_safe.decide.protect import UNITS
from vllm_safe.decide.serve_command import server_url
from vllm_safe.decide.start_checks import SWAP_SERVICE
from vllm_safe.driver.driver_facts import read_driver
from vllm_safe.earlyoom.earlyoom_defaults import admin_arguments
from vllm_safe.engine.engine_decision import cuda_of
from vllm_safe.engine.requirement_locks import read_lock
from vllm_safe.host.host_facts import Host
from vllm_safe.swap.swap_decision import decide_swap
from vllm_safe.swap.swapfile_facts import read_swap

THIS_MACHINE = "this machine"


def run_checks(config: Config, host: Host) -> dict[str, tuple[Finding, ...]]:
    """Return the findings for the machine, then those for each model. A finding is not repeated for each model."""
    seen, budget = _inspect(config), decide_budget(config, host)
    found = {THIS_MACHINE: check_machine(MachineFacts(config, host, budget, seen, _swap_refusal(config, host)))}
    reported = set(found[THIS_MACHINE])
    for name in config.models:
        own = check_running_model(read_situation(config, host, budget, name), seen)
        found[name] = tuple(finding for finding in own if finding not in reported)
        reported.update(own)
    return found


def _swap_refusal(config: Config, host: Host) -> Failure | None:
    try:
        decide_swap(config.swap, host, read_swap(config.swap.file, host))
    except Failure as failure:
        return failure
    return None


def _inspect(config: Config) -> Inspection:
    names = {name: unit_of(name) for name in config.models}
    properties = ("Id", "LoadState", "ActiveState", "MainPID", "StatusText", "MemoryMin", EACH_UNIT, "NRestarts")
    units = show_properties([EARLYOOM, SWAP_SERVICE, *UNITS.values(), *names.values()], properties)
    running = check_facts.active_units(units, names.values())
    served = {}
    for name, model in config.models.items():
        if names[name] in running and model.command is None:
            key = read_key(model.api_key_file) if model.api_key_file else None
            if not (key and key.hidden):
                served[name] = check_facts.ask_models(server_url(model, "/v1/models"), key.text if key else "")
    needs_cards = config.engine.package == "vllm" and any(model.command is None for model in config.models.values())
    return check_facts.Inspection(
        hard_disks=check_facts.read_hard_disks(),
        units=units,
        earlyoom=check_facts.read_earlyoom_arguments(int(units.get(EARLYOOM, {}).get("MainPID") or 0)),
        admin_earlyoom=admin_arguments(),
        overcommit=check_facts.read_overcommit(),
        compiler=check_facts.has_compiler(),
        headers=check_facts.has_headers(),
        served=served,
        driver=read_driver() if needs_cards else None,
        cuda=cuda_of("vllm", config.engine.version, read_lock("vllm")) if needs_cards else None,
    )
