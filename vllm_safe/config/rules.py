"""Rules for combinations of settings. The type of each setting has already validated its single value."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from math import prod

from vllm_safe.common.sizes import format_exact_span
from vllm_safe.config.arguments import NODE_OPTIONS
from vllm_safe.config.settings import INNER_PORTS, MOST_OUTER_PORT, Config, Model


@dataclass(frozen=True)
class RuleViolation:
    """A rule that the settings at `paths` (dotted) together violate. The message points at the first of them."""

    paths: tuple[str, ...]
    text: str


def find_violations(config: Config, broken: Collection[str] = ()) -> Iterator[RuleViolation]:
    """Yield every violation of the rules. Settings at the paths in `broken` are ignored, since they have been reported."""
    own = (rule(f"models.{name}", model) for name, model in config.models.items() for rule in (_program, _cards, _nodes, _on_demand))
    alone = [_shares(config), _steps(config), *own]
    yield from (violation for violation in chain.from_iterable(alone) if not any(path in broken for path in violation.paths))
    yield from _ports(config, broken)


def _shares(config: Config) -> Iterator[RuleViolation]:
    protect = config.protect
    kept = {f"protect.{name}": getattr(protect, name) for name in ("system", "user", "init", "kernel", "per_gpu")}
    shares = {path: amount.value for path, amount in kept.items() if amount and amount.is_percent}
    if sum(shares.values()) >= 100:
        total = " + ".join(f"{share:g}%" for share in shares.values())
        yield RuleViolation(
            tuple(reversed(shares)), f"protect reserves {total} of RAM and leaves none for a model; expected less than 100% in total"
        )
    each, system = protect.each_unit, protect.system
    if each and system and each.is_percent == system.is_percent and each.value > system.value:
        text = f"protect.each_unit is {each}, but it is a part of protect.system, which is {system}; expected at most {system}"
        yield RuleViolation(("protect.each_unit", "protect.system"), text)
    if config.swap.keep_free.is_percent and config.swap.keep_free.value >= 100:
        yield RuleViolation(
            ("swap.keep_free",), "swap.keep_free cannot be 100%: it leaves no space for the file; expected a size, or less than 100%"
        )


def _steps(config: Config) -> Iterator[RuleViolation]:
    """Check the guard's steps: each must have no lower share and no shorter time than the one before, and must differ from it."""
    steps = {
        name: (getattr(config.guard, f"{name}_pressure"), getattr(config.guard, f"{name}_after")) for name in ("squeeze", "freeze", "kill")
    }
    for (first, (share, span)), (second, (higher, longer)) in pairwise(steps.items()):
        if higher >= share and longer >= span and (higher, longer) != (share, span):
            continue
        both = [f"guard.{name}_{part}" for name in (second, first) for part in ("pressure", "after")]
        text = (
            f"the guard would {second} at {higher:g}% of {format_exact_span(longer)}, but {first} at {share:g}% of "
            f"{format_exact_span(span)}; expected squeeze, freeze and kill in rising order: no lower share, no shorter time, not both equal"
        )
        yield RuleViolation(tuple(sorted(both, key=lambda path: path not in config.positions)), text)


def _program(path: str, model: Model) -> Iterator[RuleViolation]:
    both = (f"{path}.command", f"{path}.model")
    if model.model is not None and model.command is not None:
        yield RuleViolation(both, f"{path} has both `model` and `command`; expected one: a model for vLLM, or another server")
    elif model.model is None and model.command is None:
        text = f"{path} has neither `model` nor `command`; expected one of them, such as model: Qwen/Qwen2.5-7B-Instruct"
        yield RuleViolation((path, *both), text)
    elif model.command is not None and model.args:
        text = f"{path}.args are options of `vllm serve`, but `command` is another server; expected its options in `command`"
        yield RuleViolation((f"{path}.args", *both), text)
    # A start that waits for an answer on a port other than the server's would only fail after stall_timeout.
    ports = set(_ports_of(model.command or ()))
    if ports and model.health is None and str(model.server_port) not in ports:
        text = f"{path}.command has --port {min(ports)}, but {path}.port is {model.port}; expected the same port, or a `health` URL"
        if model.on_demand:
            text = f"{path}.command has --port {min(ports)}, but a model on demand on port {model.port} expects --port {model.server_port}"
        yield RuleViolation((f"{path}.command", f"{path}.port", f"{path}.health"), text)


def _ports_of(command: Sequence[str]) -> Iterator[str]:
    """Yield the numbers that follow --port in a command line."""
    for word, after in pairwise((*command, "")):
        name, _, value = word.partition("=")
        number = value or after
        if name == "--port" and number.isascii() and number.isdecimal():
            yield number


def _cards(path: str, model: Model) -> Iterator[RuleViolation]:
    both = (f"{path}.env.CUDA_VISIBLE_DEVICES", f"{path}.gpus", f"{path}.env")
    if model.gpus is not None and "CUDA_VISIBLE_DEVICES" in model.env:
        yield RuleViolation(
            both, f"{path} has both `gpus` and CUDA_VISIBLE_DEVICES in `env`; expected only `gpus`, which the checks use too"
        )


def _nodes(path: str, model: Model) -> Iterator[RuleViolation]:
    here = f"{path}.nodes"
    if model.nodes is None:
        return
    if model.command is not None:
        yield RuleViolation((here, f"{path}.command"), f"{path} has both `nodes` and `command`; expected `model`: only vLLM spans machines")
        return
    if model.on_demand:
        text = f"{path} has both `nodes` and `on_demand`; expected one of them: a request to this machine does not start the others"
        yield RuleViolation((here, f"{path}.on_demand"), text)
    for option in NODE_OPTIONS:
        if option in model.args:
            text = f"{path} has both `nodes` and args.{option}; expected only `nodes`, from which the option follows"
            yield RuleViolation((f"{path}.args.{option}", here, f"{path}.args"), text)
    sizes = {option: model.args.get(option, 1) for option in ("tensor-parallel-size", "pipeline-parallel-size", "data-parallel-size")}
    if sizes["data-parallel-size"] != 1:
        text = f"{path} has both `nodes` and args.data-parallel-size; expected one of them: copies of a model do not have to be connected"
        yield RuleViolation((f"{path}.args.data-parallel-size", here, f"{path}.args"), text)
    elif all(isinstance(size, int) for size in sizes.values()) and (total := prod(sizes.values())) % len(model.nodes):
        text = (
            f"{path}: tensor-parallel-size times pipeline-parallel-size is {total}, which {len(model.nodes)} machines cannot share evenly; "
            f"expected a multiple of {len(model.nodes)}"
        )
        yield RuleViolation((here, f"{path}.args"), text)


def _on_demand(path: str, model: Model) -> Iterator[RuleViolation]:
    if not model.on_demand:
        return
    port, health = f"{path}.port", f"{path}.health"
    if model.port > MOST_OUTER_PORT:
        text = (
            f"{port} is {model.port}, and the server of a model on demand listens {INNER_PORTS} ports higher; expected at most "
            f"{MOST_OUTER_PORT}"
        )
        yield RuleViolation((port, f"{path}.on_demand"), text)
    elif not re.fullmatch(r"[0-9.]+|localhost|.*:.*", model.host):
        host = f"{path}.host"
        text = f"{host} is the host name {model.host}, but a model on demand needs an IP address; expected one such as 127.0.0.1"
        yield RuleViolation((host, f"{path}.on_demand"), text)
    # The socket would take the health check for a request, and let it wait for the very model that it checks.
    elif model.health and _port_of(model.health) == str(model.port):
        text = f"{health} has the port for clients; expected that of the server, {model.server_port}"
        yield RuleViolation((health, port), text)


def _port_of(url: str) -> str:
    """Return the port in a URL, "" if it has none."""
    address = url.partition("://")[2].partition("/")[0]
    return address.rpartition("]")[2].partition(":")[2]  # an IPv6 address is in brackets


@dataclass(frozen=True)
class _Listener:
    """An address that the configuration uses. path: the setting of its port. what: the part that listens, for people."""

    path: str
    what: str
    host: str
    port: int


def _listeners(config: Config) -> Iterator[_Listener]:
    for name, model in config.models.items():
        path = f"models.{name}.port"
        yield _Listener(path, f"models.{name}", model.host, model.port)
        if model.on_demand and model.port <= MOST_OUTER_PORT:
            yield _Listener(path, f"the server of models.{name}", model.server_host, model.server_port)
        if model.nodes:
            link = f"models.{name}.nodes_port"
            link = link if link in config.positions else f"models.{name}.nodes"
            for port in (model.nodes_port, model.nodes_port + 1):
                yield _Listener(link, f"models.{name} between its machines", "0.0.0.0", port)  # noqa: S104 - a name for all addresses
    if config.gateway.enabled:
        yield _Listener("gateway.port", "the gateway", config.gateway.host, config.gateway.port)


def _ports(config: Config, broken: Collection[str]) -> Iterator[RuleViolation]:
    holders: list[_Listener] = []
    for one in _listeners(config):
        if one.path in broken or one.path.replace(".port", ".host") in broken:
            continue
        if first := next((other for other in holders if other.port == one.port and _overlap(other.host, one.host)), None):
            text = f"{one.what} uses port {one.port}, as does {first.what}; expected another port, such as {_free(config)}"
            yield RuleViolation((one.path,), text)
        holders.append(one)


def _overlap(one: str, other: str) -> bool:
    """Return whether servers on the two addresses cannot share a port: the addresses are the same, or one is every address."""
    every = {"0.0.0.0", "::"}  # noqa: S104 - compared, not bound
    return not every.isdisjoint({one, other}) or one.replace("localhost", "127.0.0.1") == other.replace("localhost", "127.0.0.1")


def _free(config: Config) -> int:
    taken = {listener.port for listener in _listeners(config)}
    return next(port for port in range(8000, 65536) if port not in taken)
