"""What the settings must be together. Each value by itself has been read by its kind."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise

from vllm_safe.common.sizes import format_exact_span
from vllm_safe.config.settings import Config, Model


@dataclass(frozen=True)
class RuleViolation:
    """A rule that is broken by the settings at `paths` (dotted) together; the first is where to point."""

    paths: tuple[str, ...]
    text: str


def find_violations(config: Config, broken: Collection[str] = ()) -> Iterator[RuleViolation]:
    """Everything in the settings that cannot be together. Settings at the paths `broken` are left out of it."""
    own = (rule(f"models.{name}", model) for name, model in config.models.items() for rule in (_program, _cards))
    alone = [_shares(config), _steps(config), *own]
    yield from (breach for breach in chain.from_iterable(alone) if not any(path in broken for path in breach.paths))
    yield from _ports(config, broken)


def _shares(config: Config) -> Iterator[RuleViolation]:
    protect = config.protect
    kept = {f"protect.{name}": getattr(protect, name) for name in ("system", "user", "init", "kernel", "per_gpu")}
    shares = {path: amount.value for path, amount in kept.items() if amount and amount.is_percent}
    if sum(shares.values()) >= 100:
        total = " + ".join(f"{share:g}%" for share in shares.values())
        yield RuleViolation(
            tuple(reversed(shares)), f"protect keeps {total} of RAM, and nothing for a model; expected less than 100% together"
        )
    each, system = protect.each_unit, protect.system
    if each and system and each.is_percent == system.is_percent and each.value > system.value:
        text = f"protect.each_unit is {each}, and a part of protect.system, which is {system}; expected no more than that"
        yield RuleViolation(("protect.each_unit", "protect.system"), text)
    if config.swap.keep_free.is_percent and config.swap.keep_free.value >= 100:
        yield RuleViolation(
            ("swap.keep_free",), "swap.keep_free cannot be 100%: no file fits beside it; expected a size, or less than 100%"
        )


def _steps(config: Config) -> Iterator[RuleViolation]:
    """The guard's steps, of which each must be due after the one before: no lower share, no shorter time, and not the same of both."""
    steps = {
        name: (getattr(config.guard, f"{name}_pressure"), getattr(config.guard, f"{name}_after")) for name in ("squeeze", "freeze", "kill")
    }
    for (first, (share, span)), (second, (higher, longer)) in pairwise(steps.items()):
        if higher >= share and longer >= span and (higher, longer) != (share, span):
            continue
        both = [f"guard.{name}_{part}" for name in (second, first) for part in ("pressure", "after")]
        text = (
            f"the guard is to {second} at {higher:g}% of {format_exact_span(longer)}, and to {first} at {share:g}% of "
            f"{format_exact_span(span)}; expected the steps to rise from squeeze to freeze to kill: no lower share, no shorter time"
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
        text = f"{path}.args are options of `vllm serve`, and `command` is another server; expected them in `command`"
        yield RuleViolation((f"{path}.args", *both), text)
    # What waits for an answer at another port than the server has would only find out after stall_timeout.
    ports = set(_ports_of(model.command or ()))
    if ports and model.health is None and str(model.port) not in ports:
        text = f"{path}.command has --port {min(ports)}, and {path}.port is {model.port}; expected the same, or `health`, where it answers"
        yield RuleViolation((f"{path}.command", f"{path}.port", f"{path}.health"), text)


def _ports_of(command: Sequence[str]) -> Iterator[str]:
    """The numbers that a command line has after --port."""
    for word, after in pairwise((*command, "")):
        name, _, value = word.partition("=")
        number = value or after
        if name == "--port" and number.isascii() and number.isdecimal():
            yield number


def _cards(path: str, model: Model) -> Iterator[RuleViolation]:
    both = (f"{path}.env.CUDA_VISIBLE_DEVICES", f"{path}.gpus", f"{path}.env")
    if model.gpus is not None and "CUDA_VISIBLE_DEVICES" in model.env:
        yield RuleViolation(
            both, f"{path} has both `gpus` and CUDA_VISIBLE_DEVICES in `env`; expected one: `gpus`, by which it is judged too"
        )


def _ports(config: Config, broken: Collection[str]) -> Iterator[RuleViolation]:
    holders: dict[int, list[str]] = {}  # names of models by port
    for name, model in config.models.items():
        if f"models.{name}.port" in broken or f"models.{name}.host" in broken:
            continue
        for first in holders.setdefault(model.port, []):
            if _overlap(config.models[first].host, model.host):
                text = f"models.{name} has port {model.port}, as models.{first} has; expected a port for each, such as {_free(config)}"
                yield RuleViolation((f"models.{name}.port",), text)
                break
        holders[model.port].append(name)


def _overlap(one: str, other: str) -> bool:
    """Whether a server on one address leaves no room for one on the other: the same address, or every address."""
    every = {"0.0.0.0", "::"}  # noqa: S104 - compared, not bound
    return not every.isdisjoint({one, other}) or one.replace("localhost", "127.0.0.1") == other.replace("localhost", "127.0.0.1")


def _free(config: Config) -> int:
    taken = {model.port for model in config.models.values()}
    return next(port for port in range(8000, 65536) if port not in taken)
