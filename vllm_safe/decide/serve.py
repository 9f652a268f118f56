"""How one server is started: its arguments, environment and timeouts, each with where it came from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import prod
from types import MappingProxyType
from typing import TYPE_CHECKING

from vllm_safe import paths
from vllm_safe.config.arguments import SECRETS
from vllm_safe.config.profiles import PROFILES
from vllm_safe.decide.limits import decide_limits, unit_of
from vllm_safe.decide.origin import Origin, Sourced, origin_of
from vllm_safe.launch.plan import Launch
from vllm_safe.sizes import GIB, format_size

if TYPE_CHECKING:
    from pathlib import Path

    from vllm_safe.config.profiles import Profile
    from vllm_safe.config.settings import Config, Model
    from vllm_safe.decide.limits import ModelLimits
    from vllm_safe.host.facts import Host

# Seconds, where neither the model nor its profile says anything.
TIMEOUTS = {
    "start_timeout": 4 * 3600.0,  # a large model on a hard disk takes 10 to 60 minutes; what stands still is ended by stall_timeout
    "stall_timeout": 900.0,
    "hang_timeout": 600.0,  # vLLM itself gives a step of several cards 300 s (VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS)
    "stop_grace": 30.0,
}


def _base_environment(name: str, *, own_engine: bool) -> dict[str, tuple[str, str]]:
    """Name -> (value, reason) of what every server gets; the second half is for vLLM alone."""
    cache = str(paths.CACHE)
    common = {
        "HOME": (str(paths.HOME), ""),
        "USER": (paths.USER, "torch asks for a name, not a number"),
        "LANG": ("C.UTF-8", ""),
        "PATH": ("/usr/local/bin:/usr/bin:/bin", ""),
        "TMPDIR": ("/tmp", "private to the unit"),  # noqa: S108 - PrivateTmp=yes in vllm@.service
        "XDG_CACHE_HOME": (cache, "caches outlive a start"),
        "XDG_CONFIG_HOME": (f"{paths.HOME}/.config", ""),
        "NO_COLOR": ("1", "the journal has no colours"),
        "HF_HUB_OFFLINE": ("1", "serving is offline: vllm-safe fetch brings the files"),
        "HF_HUB_DISABLE_TELEMETRY": ("1", "telemetry off"),
        "DO_NOT_TRACK": ("1", "telemetry off"),
    }
    if not own_engine:
        return common
    return common | {
        "PATH": (f"{paths.ENGINE}/bin:/usr/local/bin:/usr/bin:/bin", "ninja is in the engine's venv"),
        "VLLM_NO_USAGE_STATS": ("1", "telemetry off"),
        "VLLM_DO_NOT_TRACK": ("1", "telemetry off"),
        "VLLM_USE_FLASHINFER_SAMPLER": ("0", "else each worker compiles it with nvcc at its first start (vLLM issue 49497)"),
        "VLLM_ALLREDUCE_USE_FLASHINFER": ("0", "else the workers of several sm_90 or sm_100 cards compile it with nvcc (flashinfer/jit)"),
        "OMP_NUM_THREADS": ("1", "what vLLM computes itself for several workers on few cores"),
        "MAX_JOBS": ("1", "a compiler takes 3-8 GB: never two at once (vLLM issue 54237)"),
        "FLASHINFER_NVCC_THREADS": ("1", "one compiler at a time, as MAX_JOBS"),
        "PYTHONFAULTHANDLER": ("1", "its processes print where they stand when they are ended for hanging"),
        "HF_HOME": (f"{cache}/huggingface", "caches outlive a start"),
        "HF_XET_HIGH_PERFORMANCE": ("0", "vLLM would turn it on, and it takes RAM"),
        "VLLM_CACHE_ROOT": (f"{cache}/vllm", "caches outlive a start"),
        "VLLM_CONFIG_ROOT": (f"{paths.HOME}/.config/vllm", ""),
        "VLLM_RPC_BASE_PATH": (str(paths.SERVICE_RUN / name), "its sockets go with the unit"),
        "TRITON_CACHE_DIR": (f"{cache}/triton", "caches outlive a start"),
        "TORCHINDUCTOR_CACHE_DIR": (f"{cache}/torchinductor", "caches outlive a start"),
        "FLASHINFER_WORKSPACE_BASE": (cache, "caches outlive a start"),
        "CUDA_CACHE_PATH": (f"{cache}/cuda", "caches outlive a start"),
    }


# Between the processes of a model on one machine. Without them vLLM and gloo look for an address that others could reach, by way of names:
# with a resolver that does not answer, a start takes two minutes more. NCCL, too, would listen where others can connect.
_LOOPBACK: Mapping[str, str] = MappingProxyType({"VLLM_HOST_IP": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"})
# Options of `vllm serve` with which a model spans several machines.
_SEVERAL_MACHINES = frozenset({"nnodes", "node-rank", "master-addr", "headless", "data-parallel-address", "data-parallel-start-rank"})

_SPLITS = ("tensor-parallel-size", "pipeline-parallel-size", "data-parallel-size")


def _spans_machines(model: Model) -> bool:
    return not _SEVERAL_MACHINES.isdisjoint(model.args) or model.args.get("distributed-executor-backend") == "ray"


# Below either, workers are forked. Of 8 workers on 2 processors (the CPU build) that saves 2 GiB and two thirds of the processor time of a
# start, of 2 on cards (H200) 1.4 GiB and a third of the time: tests/gpu/RESULTS.md. vLLM spawns them all the same where it cannot fork.
_FEW_CPUS, _LITTLE_MEMORY = 4, 32 * GIB


def _worker_environment(config: Config, host: Host, name: str) -> dict[str, tuple[str, str]]:
    """What depends on where the workers of a model are, and on how much room they have there."""
    model, _ = _model(config, name)
    if model.command is not None or _spans_machines(model):
        return {}
    found = {key: (value, "its processes are all on this machine") for key, value in _LOOPBACK.items()}
    if world_size(config, name) > 1 and (host.cpus <= _FEW_CPUS or host.memory < _LITTLE_MEMORY):
        why = f"{host.cpus} CPUs and {format_size(host.memory)} of RAM: forked workers share what is imported"
        found["VLLM_WORKER_MULTIPROC_METHOD"] = ("fork", why)
    return found


def decide_environment(config: Config, host: Host, name: str, given: Mapping[str, str]) -> dict[str, Sourced]:
    """The server's environment: what every server gets, Environment= of its unit (`given`), its cards, the profile's, the model's own.

    The later wins.
    """
    model, profile = _model(config, name)
    base = _base_environment(name, own_engine=model.command is None) | _worker_environment(config, host, name)
    environment = {key: Sourced(value, Origin("default", reason)) for key, (value, reason) in base.items()}
    drop_in = Origin(f"Environment= of {unit_of(name)}", f"systemctl cat {unit_of(name)}")
    environment |= {key: Sourced(value, drop_in) for key, value in given.items() if key not in SECRETS}
    if model.gpus is not None:
        at = origin_of(config, f"models.{name}.gpus")
        environment["CUDA_DEVICE_ORDER"] = Sourced("PCI_BUS_ID", Origin(at.source, "numbered as nvidia-smi does"))
        environment["CUDA_VISIBLE_DEVICES"] = Sourced(",".join(map(str, model.gpus)), at)
    environment |= {key: Sourced(value, _from(profile)) for key, value in profile.env.items()}
    environment |= {key: Sourced(value, origin_of(config, f"models.{name}.env.{key}")) for key, value in model.env.items()}
    return environment


def decide_arguments(config: Config, name: str) -> dict[str, Sourced]:
    """Options of `vllm serve` without their dashes, the later instead of the earlier. {} for a `command:` server."""
    model, profile = _model(config, name)
    if model.model is None:
        return {}
    grace = decide_timeouts(config, name)["stop_grace"]
    at = f"models.{name}"
    arguments = {
        "model": Sourced(str(model_folder(model.model)), origin_of(config, f"{at}.model")),
        "served-model-name": Sourced([name], Origin("default", "the name that clients say")),
        "host": Sourced(model.host, origin_of(config, f"{at}.host")),
        "port": Sourced(model.port, origin_of(config, f"{at}.port")),
        "shutdown-timeout": Sourced(int(grace.value), Origin(grace.origin.source, "stop_grace")),
        "disable-access-log-for-endpoints": Sourced("/health,/metrics,/ping", Origin("default", "we ask every few seconds")),
    }
    later = [(key, Sourced(value, _from(profile))) for key, value in profile.args.items()]
    later += [(key, Sourced(value, origin_of(config, f"{at}.args.{key}"))) for key, value in model.args.items()]
    return arguments | dict(later)


def world_size(config: Config, name: str) -> int:
    """How many cards of this machine vLLM splits the model over; 0 where only the server knows."""
    model, _ = _model(config, name)
    if model.model is None or _spans_machines(model):
        return 0
    arguments = decide_arguments(config, name)
    sizes = (arguments[option].value for option in _SPLITS if option in arguments)
    return prod(size for size in sizes if isinstance(size, int))


def decide_timeouts(config: Config, name: str) -> dict[str, Sourced]:
    """Each of TIMEOUTS: the model's own, else its profile's, else ours."""
    model, profile = _model(config, name)
    timeouts = {}
    for key, default in TIMEOUTS.items():
        if (own := getattr(model, key)) is not None:
            timeouts[key] = Sourced(own, origin_of(config, f"models.{name}.{key}"))
        elif (profiles := getattr(profile, key)) is not None:
            timeouts[key] = Sourced(profiles, _from(profile))
        else:
            timeouts[key] = Sourced(default, Origin("default"))
    return timeouts


def decide_launch(config: Config, host: Host, name: str, given: Mapping[str, str]) -> Launch:
    """The whole start of the model `name`, which the file must have. given: Environment= of its unit."""
    model = config.models[name]
    limits = decide_limits(config, host, name)
    arguments = {key: sourced.value for key, sourced in decide_arguments(config, name).items()}
    own_engine = model.command is None
    serve_file = str(paths.SERVICE_RUN / name / "serve.yaml") if own_engine else ""
    return Launch(
        name=name,
        profile=model.profile,
        # A space between --config and the file: `--config=FILE` is ignored without a word, and another model served.
        argv=model.command or (server_program(model), "serve", "--config", serve_file),
        env={key: sourced.value for key, sourced in decide_environment(config, host, name, given).items()},
        serve_file=serve_file,
        serve_args=arguments or None,
        checkpoint=str(model_folder(model.model)) if model.model else "",
        health=health_url(model),
        metrics=server_url(model, "/metrics") if own_engine else "",
        # A server that sleeps would be woken, or die of it.
        completions=server_url(model, "/v1/completions") if own_engine and model.warm_up and not arguments.get("enable-sleep-mode") else "",
        textfile=str(config.metrics.textfile or ""),
        oom_score_adj=limits.oom_score_adj.value,
        io_scheduling_class=limits.io_scheduling_class.value,
        **{key: timeout.value for key, timeout in decide_timeouts(config, name).items()},
        summary=tuple(_summary(limits, model)),
    )


def server_program(model: Model) -> str:
    """The program that serves, as it is run."""
    return model.command[0] if model.command else f"{paths.ENGINE}/bin/vllm"


def model_folder(model: str) -> Path:
    """Where the files of a model are: the path itself, or for a hub id ORG/NAME the folder that `vllm-safe fetch` fills."""
    return paths.MODELS / model  # an absolute path replaces what is before it


def health_url(model: Model) -> str:
    """The URL that answers 200 when the server serves."""
    return model.health or server_url(model, "/health")


def server_url(model: Model, path: str) -> str:
    """The URL of `path` at the server, for a client on this machine."""
    wildcard = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - what it listens on, not what we choose
    address = wildcard.get(model.host, model.host)
    return f"http://{f'[{address}]' if ':' in address else address}:{model.port}{path}"


def _model(config: Config, name: str) -> tuple[Model, Profile]:
    model = config.models[name]
    return model, PROFILES[model.profile]


def _from(profile: Profile) -> Origin:
    return Origin(f"profile {profile.name}")


def _summary(limits: ModelLimits, model: Model) -> Iterable[str]:
    for label, decided in (("RAM", limits.memory_max), ("swap", limits.swap_max)):
        yield f"at most {format_size(decided.value)} of {label}: {decided.origin}"
    if model.profile != "default":
        yield f"profile {model.profile}: {PROFILES[model.profile].reason}"
