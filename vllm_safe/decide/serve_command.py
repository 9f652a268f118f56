"""The command of one server: its arguments, environment and timeouts, each with its origin."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from vllm_safe.common import paths
from vllm_safe.common.sizes import format_size
from vllm_safe.config.profiles import PROFILES
from vllm_safe.config.settings import Config, Model
from vllm_safe.contract.default_times import DEFAULT_TIMES
from vllm_safe.contract.launch_file import Launch
from vllm_safe.decide.limits import DecidedLimits
from vllm_safe.decide.node_options import agreed_values, node_arguments
from vllm_safe.decide.origin import Origin, Sourced, origin_of, profile_origin
from vllm_safe.decide.server_address import health_url, model_folder, server_program, server_url
from vllm_safe.decide.server_environment import decide_environment
from vllm_safe.decide.server_split import world_size
from vllm_safe.host.host_facts import Host


def _arguments(config: Config, host: Host, name: str, grace: Sourced) -> dict[str, Sourced]:
    """Decide the options of `vllm serve`, without their dashes. A later value replaces an earlier one. {} for a `command:` server."""
    model = config.models[name]
    profile = PROFILES[model.profile]
    if model.model is None:
        return {}
    path = f"models.{name}"
    arguments = {
        "model": Sourced(str(model_folder(model.model)), origin_of(config, f"{path}.model")),
        "served-model-name": Sourced([name], Origin("default", "the model name in requests")),
        "host": Sourced(model.server_host, _server_origin(config, name, "host")),
        "port": Sourced(model.server_port, _server_origin(config, name, "port")),
        "shutdown-timeout": Sourced(int(grace.value), Origin(grace.origin.source, "stop_grace")),
        "disable-access-log-for-endpoints": Sourced("/health,/metrics,/ping", Origin("default", "vllm-safe polls them every few seconds")),
    }
    later = [(key, Sourced(value, profile_origin(profile))) for key, value in profile.args.items()]
    later += [(key, Sourced(value, origin_of(config, f"{path}.args.{key}"))) for key, value in model.args.items()]
    return arguments | dict(later) | node_arguments(config, name, host.name)


def _server_origin(config: Config, name: str, setting: str) -> Origin:
    """Return the origin of the server's address. For a model on demand, it follows from the address for its clients."""
    origin = origin_of(config, f"models.{name}.{setting}")
    return Origin(origin.source, "the server of a model on demand") if config.models[name].on_demand else origin


def decide_timeouts(config: Config, name: str) -> dict[str, Sourced]:
    """Decide each of DEFAULT_TIMES: the model's own, else its profile's, else the default."""
    model = config.models[name]
    profile = PROFILES[model.profile]
    timeouts = {}
    for key, default in DEFAULT_TIMES.items():
        if (own := getattr(model, key)) is not None:
            timeouts[key] = Sourced(own, origin_of(config, f"models.{name}.{key}"))
        elif (profiles := getattr(profile, key)) is not None:
            timeouts[key] = Sourced(profiles, profile_origin(profile))
        else:
            timeouts[key] = Sourced(default, Origin("default"))
    return timeouts


@dataclass(frozen=True)
class ServerCommand:
    """The command of one server. It is decided once, shown by `vllm-safe show`, and part of the launch file.

    arguments: options of `vllm serve` without their dashes, {} for a `command:` server. timeouts: seconds, by the keys of DEFAULT_TIMES.
    world_size: the number of cards of this machine over which vLLM splits the model; 0 where only the server knows it.
    """

    program: str
    arguments: Mapping[str, Sourced]
    environment: Mapping[str, Sourced]
    timeouts: Mapping[str, Sourced]
    world_size: int
    machines: int = 1  # the number of machines that serve the model together


def decide_server(config: Config, host: Host, name: str, given: Mapping[str, str]) -> ServerCommand:
    """Decide the command of the server of the model `name`. The configuration has that model. given: Environment= of its unit."""
    model = config.models[name]
    timeouts = decide_timeouts(config, name)
    arguments = _arguments(config, host, name, timeouts["stop_grace"])
    return ServerCommand(
        server_program(model),
        arguments,
        decide_environment(config, host, name, given, arguments),
        timeouts,
        world_size(model, arguments),
        len(model.nodes or ("",)),
    )


def decide_launch(config: Config, name: str, server: ServerCommand, limits: DecidedLimits, engine: str = "") -> Launch:
    """Decide the launch file of the model `name`. The configuration has that model. engine: its package and version."""
    model = config.models[name]
    arguments = {key: sourced.value for key, sourced in server.arguments.items()}
    own_engine = model.command is None
    answers = not arguments.get("headless")  # of several machines, only the first accepts requests
    serve_file = str(paths.SERVICE_RUN / name / "serve.yaml") if own_engine else ""
    return Launch(
        name=name,
        profile=model.profile,
        # A space between --config and the file: vLLM silently ignores `--config=FILE`, and serves another model.
        argv=model.command or (server.program, "serve", "--config", serve_file),
        env={key: sourced.value for key, sourced in server.environment.items()},
        serve_file=serve_file,
        serve_args=arguments or None,
        checkpoint=str(model_folder(model.model)) if model.model else "",
        health=health_url(model) if answers else "",
        metrics=server_url(model, "/metrics") if own_engine and answers else "",
        completions=server_url(model, "/v1/completions") if own_engine and answers and _may_be_asked(model, arguments) else "",
        textfile=str(config.metrics.textfile or ""),
        oom_score_adj=limits.oom_score_adj.value,
        io_scheduling_class=limits.io_scheduling_class.value,
        idle_timeout=(model.idle_timeout or 0.0) if model.on_demand else 0.0,
        port=0 if own_engine else model.server_port,
        **{key: timeout.value for key, timeout in server.timeouts.items()},
        summary=tuple(_summary(limits, model)),
        nodes=model.nodes or (),
        rank=arguments.get("node-rank", 0) if model.nodes else 0,
        nodes_port=model.nodes_port if model.nodes else 0,
        nodes_public=model.nodes_public,
        agreed=agreed_values(model, engine, server.arguments) if model.nodes else None,
    )


def _may_be_asked(model: Model, arguments: Mapping[str, Any]) -> bool:
    """Return whether the server may be asked for a token. A request would wake a server in sleep mode, or make it exit."""
    return model.warm_up and not arguments.get("enable-sleep-mode")


def _summary(limits: DecidedLimits, model: Model) -> Iterable[str]:
    for label, decided in (("RAM", limits.memory_max), ("swap", limits.swap_max)):
        yield f"at most {format_size(decided.value)} of {label}: {decided.origin}"
    if model.profile != "default":
        yield f"profile {model.profile}: {PROFILES[model.profile].reason}"
