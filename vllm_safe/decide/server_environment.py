"""The environment of one server, each variable with its origin, and the loader that it selects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from vllm_safe.common import paths
from vllm_safe.common.sizes import GIB, format_size
from vllm_safe.config.arguments import SECRETS
from vllm_safe.config.profiles import PROFILES
from vllm_safe.config.settings import Config, Model
from vllm_safe.decide.limits import unit_of
from vllm_safe.decide.origin import Origin, Sourced, origin_of, profile_origin
from vllm_safe.decide.server_split import spans_machines, world_size
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
        "VLLM_ALLREDUCE_USE_FLASHINFER": ("0", "otherwise workers on several sm_90 or sm_100 GPUs compile it with nvcc (flashinfer/jit)"),
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
# If only one of the machines had such a plan (the cache of another was emptied), it would capture CUDA graphs before the KV cache exists,
# and wait for the others for ever.
_OF_SEVERAL = MappingProxyType({"VLLM_ENABLE_STARTUP_PLAN": ("0", "the machines of a model have to take the same steps")})
# With at most as many CPUs, or with less RAM (bytes), workers are forked. With 8 workers on 2 CPUs (the CPU build) that saves 2 GiB and two
# thirds of the CPU time of a start, with 2 on cards (H200) 1.4 GiB and a third of the time: tests/gpu/RESULTS.md. vLLM still spawns them
# where it cannot fork.
_FEW_CPUS, _LITTLE_MEMORY = 4, 32 * GIB


def forks_workers(host: Host, size: int) -> bool:
    """Return whether the `size` workers of a model are forked and not spawned."""
    return size > 1 and (host.cpus <= _FEW_CPUS or host.memory < _LITTLE_MEMORY)


def _worker_environment(host: Host, model: Model, size: int) -> dict[str, tuple[str, str]]:
    """Return the variables that depend on where the `size` workers of a model run, and on the CPUs and RAM there."""
    if model.command is not None or spans_machines(model):
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
    if spans_machines(model):
        return Sourced("vllm", Origin("default", "vLLM's own loader reads a model that spans several machines"))
    if asked and asked.value != "auto":
        return Sourced("vllm", Origin(asked.origin.source, f"load-format is {asked.value}"))
    return Sourced("auto", Origin(source, "one worker reads them for all, in order and in large requests"))


def _loader_environment(config: Config, name: str, arguments: Mapping[str, Sourced]) -> dict[str, Sourced]:
    """Return the variable by which vLLM finds the plugin that reads the weights; {} if vLLM's own loader reads them."""
    decided = decide_loader(config, name, arguments)
    return {"PYTHONPATH": replace(decided, value=str(paths.ENGINE_PLUGINS))} if decided.value == "auto" else {}


def decide_environment(
    config: Config, host: Host, name: str, given: Mapping[str, str], arguments: Mapping[str, Sourced]
) -> dict[str, Sourced]:
    """Decide the environment of a server; the later wins.

    The variables of every server, that of the loader, Environment= of its unit (`given`), its cards, the profile's, the model's own.
    """
    model = config.models[name]
    profile = PROFILES[model.profile]
    base = _base_environment(name, own_engine=model.command is None) | _worker_environment(host, model, world_size(model, arguments))
    environment = {key: Sourced(value, Origin("default", reason)) for key, (value, reason) in base.items()}
    environment |= _loader_environment(config, name, arguments)
    drop_in = Origin(f"Environment= of {unit_of(name)}", f"systemctl cat {unit_of(name)}")
    environment |= {key: Sourced(value, drop_in) for key, value in given.items() if key not in SECRETS}
    if model.gpus is not None:
        origin = origin_of(config, f"models.{name}.gpus")
        environment["CUDA_DEVICE_ORDER"] = Sourced("PCI_BUS_ID", Origin(origin.source, "numbered as in nvidia-smi"))
        environment["CUDA_VISIBLE_DEVICES"] = Sourced(",".join(map(str, model.gpus)), origin)
    environment |= {key: Sourced(value, profile_origin(profile)) for key, value in profile.env.items()}
    environment |= {key: Sourced(value, origin_of(config, f"models.{name}.env.{key}")) for key, value in model.env.items()}
    return environment
