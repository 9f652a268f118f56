"""The command of one server: its arguments, environment and timeouts, each with its origin."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Any

from vllm_safe.common import paths
from vllm_safe.common.sizes import GIB, format_size
from vllm_safe.config.arguments import SECRETS
from vllm_safe.config.profiles import PROFILES, Profile
from vllm_safe.config.settings import Config, Model
from vllm_safe.contract.default_times import DEFAULT_TIMES
from vllm_safe.contract.launch_file import Launch
from vllm_safe.decide.limits import DecidedLimits, unit_of
from vllm_safe.decide.node_options import agreed_values, node_arguments
from vllm_safe.decide.origin import Origin, Sourced, origin_of
from vllm_safe.host.host_facts import Host


def _base_environment(name: str, *, own_engine: bool) -> dict[str, tuple[str, str]]:
    """Return the variables that every server gets, by name, as (value, reason). `own_engine` adds those for vLLM."""
    cache = str(paths.CACHE)
    common = {
        "HOME": (str(paths.HOME), ""),
        "USER": (paths.USER, "torch requires a user name"),
        "LANG": ("C.UTF-8", ""),
        "PATH": ("/usr/local/bin:/usr/bin:/bin", ""),
        "TMPDIR": ("/tmp", "private to the unit"),  # noqa: S108 - PrivateTmp=yes in vllm@.service
        "XDG_CACHE_HOME": (cache, "caches persist across starts"),
        "XDG_CONFIG_HOME": (f"{paths.HOME}/.config", ""),
        "NO_COLOR": ("1", "no ANSI colours in the journal"),
        "HF_HUB_OFFLINE": ("1", "serving is offline; vllm-safe fetch downloads the files"),
        "HF_HUB_DISABLE_TELEMETRY": ("1", "telemetry off"),
        "DO_NOT_TRACK": ("1", "telemetry off"),
    }
    if not own_engine:
        return common
    return common | {
        "PATH": (f"{paths.ENGINE}/bin:/usr/local/bin:/usr/bin:/bin", "ninja is in the engine's venv"),
        "VLLM_NO_USAGE_STATS": ("1", "telemetry off"),
        "VLLM_DO_NOT_TRACK": ("1", "telemetry off"),
        "VLLM_USE_FLASHINFER_SAMPLER": ("0", "otherwise each worker compiles it with nvcc at its first start (vLLM issue 49497)"),
        "VLLM_ALLREDUCE_USE_FLASHINFER": ("0", "otherwise workers on several sm_90 or sm_100 cards compile it with nvcc (flashinfer/jit)"),
        "VLLM_ENABLE_STARTUP_PLAN": ("1", "an equal start takes over the size of the KV cache (vllm/v1/worker/startup_plan.py)"),
        "OMP_NUM_THREADS": ("1", "the value that vLLM itself computes for several workers on few cores"),
        "MAX_JOBS": ("1", "a compiler uses 3-8 GB of RAM: one at a time (vLLM issue 54237)"),
        "FLASHINFER_NVCC_THREADS": ("1", "one compiler at a time, like MAX_JOBS"),
        "PYTHONFAULTHANDLER": ("1", "processes print their stacks when they are ended for hanging"),
        "HF_HOME": (f"{cache}/huggingface", "caches persist across starts"),
        "HF_XET_HIGH_PERFORMANCE": ("0", "vLLM would turn it on, and it uses more RAM"),
        "VLLM_CACHE_ROOT": (f"{cache}/vllm", "caches persist across starts"),
        "VLLM_CONFIG_ROOT": (f"{paths.HOME}/.config/vllm", ""),
        "VLLM_RPC_BASE_PATH": (str(paths.SERVICE_RUN / name), "sockets are removed with the unit"),
        "TRITON_CACHE_DIR": (f"{cache}/triton", "caches persist across starts"),
        "TORCHINDUCTOR_CACHE_DIR": (f"{cache}/torchinductor", "caches persist across starts"),
        "FLASHINFER_WORKSPACE_BASE": (cache, "caches persist across starts"),
        "CUDA_CACHE_PATH": (f"{cache}/cuda", "caches persist across starts"),
    }


# Variables for the processes of a model on one machine. Without them vLLM and gloo resolve host names to find an address that other
# machines can reach: with a resolver that does not respond, a start takes two minutes more. NCCL, too, would listen where other machines
# can connect.
_LOOPBACK: Mapping[str, str] = MappingProxyType({"VLLM_HOST_IP": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"})
# Options of `vllm serve` with which a model spans several machines without the setting `nodes`.
_SEVERAL_MACHINES = frozenset({"nnodes", "node-rank", "master-addr", "headless", "data-parallel-address", "data-parallel-start-rank"})

# If only one of the machines had such a plan (the cache of another was emptied), it would capture CUDA graphs before the KV cache exists,
# and wait for the others for ever.
_OF_SEVERAL = MappingProxyType({"VLLM_ENABLE_STARTUP_PLAN": ("0", "the machines of a model have to take the same steps")})

_SPLITS = ("tensor-parallel-size", "pipeline-parallel-size", "data-parallel-size")


def _spans_machines(model: Model) -> bool:
    """Return whether it does by its own options, of which nothing is known here."""
    by_options = not _SEVERAL_MACHINES.isdisjoint(model.args) or model.args.get("distributed-executor-backend") == "ray"
    return model.nodes is None and by_options


# With at most as many CPUs, or with less RAM (bytes), workers are forked. With 8 workers on 2 CPUs (the CPU build) that saves 2 GiB and two
# thirds of the CPU time of a start, with 2 on cards (H200) 1.4 GiB and a third of the time: tests/gpu/RESULTS.md. vLLM still spawns them
# where it cannot fork.
_FEW_CPUS, _LITTLE_MEMORY = 4, 32 * GIB


def forks_workers(host: Host, size: int) -> bool:
    """Return whether the `size` workers of a model are forked and not spawned."""
    return size > 1 and (host.cpus <= _FEW_CPUS or host.memory < _LITTLE_MEMORY)


def _worker_environment(host: Host, model: Model, size: int) -> dict[str, tuple[str, str]]:
    """Return the variables that depend on where the `size` workers of a model run, and on the CPUs and RAM there."""
    if model.command is not None or _spans_machines(model):
        return {}
    alone = "all its processes are on this machine"
    found = dict(_OF_SEVERAL) if model.nodes else {key: (value, alone) for key, value in _LOOPBACK.items()}
    if forks_workers(host, size):
        why = f"{host.cpus} CPUs and {format_size(host.memory)} of RAM: forked workers share imported modules"
        found["VLLM_WORKER_MULTIPROC_METHOD"] = ("fork", why)
    return found


def decide_loader(config: Config, name: str, arguments: Mapping[str, Sourced]) -> Sourced:
    """Decide which loader reads the weights: "auto" is the plugin of this package if it can, and "vllm" is vLLM's own loader."""
    model, asked = config.models[name], arguments.get("load-format")
    source = origin_of(config, f"models.{name}.load").source
    if model.command is not None:
        return Sourced("vllm", Origin("default", "a server other than vLLM reads them itself"))
    if model.load == "vllm":
        return Sourced("vllm", Origin(source, "vLLM's own loader: each worker reads them for itself"))
    if _spans_machines(model):
        return Sourced("vllm", Origin("default", "vLLM's own loader reads a model that spans several machines"))
    if asked and asked.value != "auto":
        return Sourced("vllm", Origin(asked.origin.source, f"load-format is {asked.value}"))
    return Sourced("auto", Origin(source, "one worker reads them for all, in order and in large requests"))


def _loader_environment(config: Config, name: str, arguments: Mapping[str, Sourced]) -> dict[str, Sourced]:
    """Return the variable by which vLLM finds the plugin that reads the weights; {} if vLLM's own loader reads them."""
    decided = decide_loader(config, name, arguments)
    return {"PYTHONPATH": replace(decided, value=str(paths.ENGINE_PLUGINS))} if decided.value == "auto" else {}


def _environment(config: Config, host: Host, name: str, given: Mapping[str, str], arguments: Mapping[str, Sourced]) -> dict[str, Sourced]:
    """Decide the environment of a server; the later wins.

    The variables of every server, that of the loader, Environment= of its unit (`given`), its cards, the profile's, the model's own.
    """
    model, profile = _model(config, name)
    base = _base_environment(name, own_engine=model.command is None) | _worker_environment(host, model, _world_size(model, arguments))
    environment = {key: Sourced(value, Origin("default", reason)) for key, (value, reason) in base.items()}
    environment |= _loader_environment(config, name, arguments)
    drop_in = Origin(f"Environment= of {unit_of(name)}", f"systemctl cat {unit_of(name)}")
    environment |= {key: Sourced(value, drop_in) for key, value in given.items() if key not in SECRETS}
    if model.gpus is not None:
        origin = origin_of(config, f"models.{name}.gpus")
        environment["CUDA_DEVICE_ORDER"] = Sourced("PCI_BUS_ID", Origin(origin.source, "numbered as in nvidia-smi"))
        environment["CUDA_VISIBLE_DEVICES"] = Sourced(",".join(map(str, model.gpus)), origin)
    environment |= {key: Sourced(value, _from(profile)) for key, value in profile.env.items()}
    environment |= {key: Sourced(value, origin_of(config, f"models.{name}.env.{key}")) for key, value in model.env.items()}
    return environment


def _arguments(config: Config, host: Host, name: str, grace: Sourced) -> dict[str, Sourced]:
    """Decide the options of `vllm serve`, without their dashes. A later value replaces an earlier one. {} for a `command:` server."""
    model, profile = _model(config, name)
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
    later = [(key, Sourced(value, _from(profile))) for key, value in profile.args.items()]
    later += [(key, Sourced(value, origin_of(config, f"{path}.args.{key}"))) for key, value in model.args.items()]
    return arguments | dict(later) | node_arguments(config, name, host.name)


def _server_origin(config: Config, name: str, setting: str) -> Origin:
    """Return the origin of the server's address. For a model on demand, it follows from the address for its clients."""
    origin = origin_of(config, f"models.{name}.{setting}")
    return Origin(origin.source, "the server of a model on demand") if config.models[name].on_demand else origin


def _world_size(model: Model, arguments: Mapping[str, Sourced]) -> int:
    if model.model is None or _spans_machines(model):
        return 0
    sizes = (arguments[option].value for option in _SPLITS if option in arguments)
    return prod(size for size in sizes if isinstance(size, int)) // len(model.nodes or ("",))


def decide_timeouts(config: Config, name: str) -> dict[str, Sourced]:
    """Decide each of DEFAULT_TIMES: the model's own, else its profile's, else ours."""
    model, profile = _model(config, name)
    timeouts = {}
    for key, default in DEFAULT_TIMES.items():
        if (own := getattr(model, key)) is not None:
            timeouts[key] = Sourced(own, origin_of(config, f"models.{name}.{key}"))
        elif (profiles := getattr(profile, key)) is not None:
            timeouts[key] = Sourced(profiles, _from(profile))
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
        _environment(config, host, name, given, arguments),
        timeouts,
        _world_size(model, arguments),
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


def server_program(model: Model) -> str:
    """Return the program of the server, as it is executed."""
    return model.command[0] if model.command else f"{paths.ENGINE}/bin/vllm"


def model_folder(model: str) -> Path:
    """Return the folder of a model's files: the path itself, or for a hub id ORG/NAME the folder that `vllm-safe fetch` fills."""
    return paths.MODELS / model  # an absolute path replaces the folder before it


def health_url(model: Model) -> str:
    """Return the URL that returns HTTP 200 once the server is ready."""
    return model.health or server_url(model, "/health")


def server_url(model: Model, path: str) -> str:
    """Return the URL of `path` at the server, for a client on this machine."""
    return f"http://{host_and_port(reachable_host(model), model.server_port)}{path}"


def reachable_host(model: Model) -> str:
    """Return the address at which a client on this machine reaches the server."""
    wildcard = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - the address is the configuration's choice
    return wildcard.get(model.server_host, model.server_host)


def host_and_port(host: str, port: int) -> str:
    """Return HOST:PORT as in a URL, with an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _model(config: Config, name: str) -> tuple[Model, Profile]:
    model = config.models[name]
    return model, PROFILES[model.profile]


def _from(profile: Profile) -> Origin:
    return Origin(f"profile {profile.name}")


def _summary(limits: DecidedLimits, model: Model) -> Iterable[str]:
    for label, decided in (("RAM", limits.memory_max), ("swap", limits.swap_max)):
        yield f"at most {format_size(decided.value)} of {label}: {decided.origin}"
    if model.profile != "default":
        yield f"profile {model.profile}: {PROFILES[model.profile].reason}"
