"""What the settings must be together. Each value by itself has been read by its kind."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

from vllm_safe.config.settings import Config, Model


@dataclass(frozen=True)
class Breach:
    """A rule that is broken by the settings at `paths` (dotted) together; the first is where to point."""

    paths: tuple[str, ...]
    text: str


def breaches(config: Config) -> Iterator[Breach]:
    """Everything in the settings that cannot be together."""
    yield from _shares(config)
    for name, model in config.models.items():
        yield from _program(f"models.{name}", model)
    yield from _ports(config)


def _shares(config: Config) -> Iterator[Breach]:
    kept = {f"protect.{name}": getattr(config.protect, name) for name in ("system", "user", "init")}
    shares = {path: amount.value for path, amount in kept.items() if amount and amount.is_percent}
    if sum(shares.values()) >= 100:
        total = " + ".join(f"{share:g}%" for share in shares.values())
        yield Breach(tuple(reversed(shares)), f"protect keeps {total} of RAM, and nothing for a model; expected less than 100% together")
    if config.swap.keep_free.is_percent and config.swap.keep_free.value >= 100:
        yield Breach(("swap.keep_free",), "swap.keep_free cannot be 100%: no file fits beside it; expected a size, or less than 100%")


def _program(path: str, model: Model) -> Iterator[Breach]:
    both = (f"{path}.command", f"{path}.model")
    if model.model is not None and model.command is not None:
        yield Breach(both, f"{path} has both `model` and `command`; expected one: a model for vLLM, or another server")
    elif model.model is None and model.command is None:
        yield Breach(
            (path, *both), f"{path} has neither `model` nor `command`; expected one of them, such as model: Qwen/Qwen2.5-7B-Instruct"
        )
    elif model.command is not None and model.args:
        yield Breach(
            (f"{path}.args", *both), f"{path}.args are options of `vllm serve`; expected them in `command`, which is another server's"
        )


def _ports(config: Config) -> Iterator[Breach]:
    for (first, one), (second, other) in combinations(config.models.items(), 2):
        if one.port == other.port and _overlap(one.host, other.host):
            paths = tuple(f"models.{name}.{key}" for name in (second, first) for key in ("port", "host"))
            yield Breach(
                paths, f"models.{second} has port {other.port}, as models.{first} has; expected a port for each, such as {_free(config)}"
            )


def _overlap(one: str, other: str) -> bool:
    """Whether two addresses stand for a common one. "localhost" is 127.0.0.1."""
    loopback = {"localhost": "127.0.0.1", "::1": "127.0.0.1"}
    return one in {"0.0.0.0", "::"} or other in {"0.0.0.0", "::"} or loopback.get(one, one) == loopback.get(other, other)  # noqa: S104 - compared


def _free(config: Config) -> int:
    taken = {model.port for model in config.models.values()}
    return next(port for port in range(8000, 65536) if port not in taken)
