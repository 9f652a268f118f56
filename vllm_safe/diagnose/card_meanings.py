"""Advice on errors of GPUs: their memory, their driver, and the communication between them."""

from __future__ import annotations

import math
from collections.abc import Mapping

from vllm_safe.causes.messages import Message
from vllm_safe.diagnose.advice import Advice, Adviser, change_argument, change_profile_to_riser, change_variable, hint_of, riser_evidence
from vllm_safe.diagnose.verdict import Case, SettingChange
from vllm_safe.launch.end_sentence import error_figure, fitting_length


def _kv_cache(case: Case, message: Message) -> Advice:
    length = fitting_length(message.figures)
    reason = "the longest that fits, according to vLLM"
    change = [change_argument(case, "max-model-len", str(length), reason)] if length else _more_gpu(case)
    return Advice(tuple(change))


def _more_gpu(case: Case) -> list[SettingChange]:
    try:
        old = float(case.arg("gpu-memory-utilization"))
    except ValueError:
        old = 0.92  # vllm/config/cache.py:102
    new = min(0.95, old + 0.03)
    return [change_argument(case, "gpu-memory-utilization", f"{new:.2f}", "more memory of each GPU for the KV cache")] if new > old else []


def _no_kv_cache(case: Case, _message: Message) -> Advice:
    return Advice(tuple(_more_gpu(case)), "Otherwise use more GPUs (args.tensor-parallel-size), or a model with stronger quantization.")


def _cache_blocks(case: Case, message: Message) -> Advice:
    return Advice((change_argument(case, "max-num-seqs", message.figures["blocks"], "as many as fit, according to vLLM"),))


def _gpu_taken(case: Case, message: Message) -> Advice:
    free, total = error_figure(message.figures, "free"), error_figure(message.figures, "total")
    share = math.floor(100 * free / total - 1) / 100 if total else 0.0
    change = change_argument(case, "gpu-memory-utilization", f"{share:.2f}", f"{free:g} of {total:g} GiB were free")
    return Advice((change,) if share >= 0.1 else (), "nvidia-smi shows which processes use the GPU, such as an old server or a desktop.")


def _cuda_memory(case: Case, _message: Message) -> Advice:
    try:
        old = float(case.arg("gpu-memory-utilization"))
        share = max(min(0.5, old), old - 0.05)
    except ValueError:
        share = 0.87  # vLLM's default is 0.92
    seqs, length = case.arg("max-num-seqs"), case.arg("max-model-len")
    changes = [
        change_argument(case, "gpu-memory-utilization", f"{share:.2f}", "leaves more memory for what vLLM does not account for"),
        change_argument(case, "max-num-seqs", str(max(1, int(seqs) // 2)) if seqs.isdecimal() else "16", "fewer requests at once"),
    ]
    if length.isdecimal() and int(length) > 2048:
        changes.append(change_argument(case, "max-model-len", str(int(length) // 2), "shorter requests"))
    return Advice(tuple(changes))


def _too_few_gpus(case: Case, message: Message) -> Advice:
    gpus = message.figures["gpus"]
    change = SettingChange(case.path("args.tensor-parallel-size"), message.figures["wanted"], gpus, f"{gpus} GPUs are available")
    return Advice((change,) if gpus != "0" else (), "If a GPU is missing, see nvidia-smi and journalctl -k -g NVRM.")


def _heads(case: Case, message: Message) -> Advice:
    heads, wanted = int(error_figure(message.figures, "heads")), int(error_figure(message.figures, "wanted"))
    new = next((size for size in range(max(1, wanted - 1), 0, -1) if heads % size == 0), 1)
    return Advice((SettingChange(case.path("args.tensor-parallel-size"), str(wanted), str(new), f"divides {heads}"),))


def _fewer_cards(case: Case, _message: Message) -> Advice:
    old = case.arg("tensor-parallel-size")
    half = (
        (change_argument(case, "tensor-parallel-size", str(int(old) // 2), "each GPU gets a larger part of each weight"),)
        if old.isdecimal() and old > "1"
        else ()
    )
    return Advice(half, "To use more GPUs, set args.pipeline-parallel-size: each GPU then gets whole layers.")


def _nccl(case: Case, message: Message) -> Advice:
    old = case.arg("distributed-timeout-seconds")
    allowed = max(int(error_figure(message.figures, "allowed") / 1000), int(old) if old.isdecimal() else 0) or 600
    changes = (
        *change_profile_to_riser(case),
        change_argument(case, "distributed-timeout-seconds", str(max(7200, 2 * allowed)), f"{allowed} s were not enough"),
    )
    hint = (
        "Check the riser and its cable: journalctl -k -g 'NVRM|AER|pcieport' shows link errors; "
        "a slower link (Gen1 in the BIOS) is a more stable one."
    )
    return Advice(changes, hint)


def _peer_access(case: Case, _message: Message) -> Advice:
    change = change_argument(case, "disable-custom-all-reduce", "true", "uses NCCL's all-reduce, which goes through the machine's RAM")
    return Advice((change,), "profile: pcie-riser sets it, and what else such GPUs need.")


def _step(case: Case, _message: Message) -> Advice:
    name = "VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS"
    old = case.env(name)
    seconds = max(1800, 2 * int(old)) if old.isdecimal() and len(old) < 7 else 1800
    narrow = riser_evidence(case)
    slow = f"; {narrow}, and a step over x1 takes minutes" if narrow else ""
    changes = [change_variable(case, name, str(seconds), f"300 s by default{slow}")]
    if case.run.start.times.get("hang_timeout", 0.0) <= seconds:
        changes += case.longer("hang_timeout", "otherwise the model is ended before vLLM can report what hangs", least=seconds)
    hint = "profile: pcie-riser sets both, and what else risers need." if narrow and case.run.start.profile != "pcie-riser" else ""
    return Advice(tuple(changes), hint)


def _ready(case: Case, _message: Message) -> Advice:
    name = "VLLM_ENGINE_READY_TIMEOUT_S"
    old = case.env(name)
    seconds = max(14400, 2 * int(old)) if old.isdecimal() and len(old) < 7 else 14400
    return Advice((change_variable(case, name, str(seconds), "600 s by default; a large model takes hours from a slow disk"),))


def _dtype(case: Case, _message: Message) -> Advice:
    return Advice((change_argument(case, "dtype", "half", "float16, which older GPUs support"),))


def _fork(case: Case, _message: Message) -> Advice:
    return Advice(
        (change_variable(case, "VLLM_WORKER_MULTIPROC_METHOD", "spawn", "each worker is a new process: slower, and uses more memory"),)
    )


def _eager(case: Case, _message: Message) -> Advice:
    return Advice((change_argument(case, "enforce-eager", "true", "no CUDA graphs: slower"),))


_SHM = (
    "The unit has its own /dev/shm of half the RAM; the host's is not used. To enlarge it, run systemctl edit vllm@.service and set "
    "TemporaryFileSystem=/dev/shm:mode=1777,nosuid,nodev,size=75% in [Service]; what is used counts against limits.memory_max. "
    "Fewer GPUs need less."
)
_CARD = "journalctl -k -g NVRM   shows what the driver reported (Xid)."
CARDS: Mapping[str, Adviser] = {
    "kv-cache-too-small": _kv_cache,
    "no-kv-cache": _no_kv_cache,
    "cache-blocks": _cache_blocks,
    "too-few-gpus": _too_few_gpus,
    "device-ordinal": hint_of("nvidia-smi lists the GPUs that are present; if one is missing, see journalctl -k -g NVRM"),
    "heads": _heads,
    "shapes-by-cards": _fewer_cards,
    "dtype": _dtype,
    "quantization": hint_of("Use another quantization of the model (AWQ and GPTQ run on older GPUs than FP8 and NVFP4), or a newer GPU."),
    "gpu-taken": _gpu_taken,
    "profiling-race": hint_of("No other program may start or end on the GPU while the model starts: nvidia-smi shows what uses it."),
    "gpu-busy": hint_of("nvidia-smi shows which process uses the GPU; nvidia-smi -c DEFAULT lets several programs share it."),
    "cuda-memory": _cuda_memory,
    "pinned-memory": hint_of(
        "Pinned memory counts against limits.memory_max and cannot be swapped; the unit's LimitMEMLOCK= does not limit it. Leave the model "
        "more RAM, or reduce args.cpu-offload-gb or args.kv-offloading-size."
    ),
    "peer-access": _peer_access,
    "no-kernel-image": hint_of(
        "Install an engine.version that supports the GPU: vllm-safe install. "
        "nvidia-smi --query-gpu=name,compute_cap --format=csv shows the GPU."
    ),
    "kernel-resources": hint_of("Try another args.attention-backend, another model, or another engine.version."),
    "driver-too-old": hint_of(
        "CUDA 13 needs R580. Install a newer driver (nvidia-driver from Debian backports or NVIDIA's repository), "
        "or an engine.version for CUDA 12."
    ),
    "driver-mismatch": hint_of("Reboot: until then each start fails in the same way. dpkg -l 'nvidia*' shows the installed version."),
    "fabric-manager": hint_of("See systemctl status nvidia-fabricmanager; its package must have exactly the driver's version."),
    "mps": hint_of("nvidia-cuda-mps-control must run as the same user (vllm), or be stopped if it is not wanted."),
    "uvm": hint_of(
        "modprobe -r nvidia_uvm; modprobe nvidia_uvm   or reboot. systemctl status vllm-safe-nvidia   shows whether it was loaded at boot."
    ),
    "no-gpu": hint_of("See nvidia-smi; the driver must be loaded and new enough (R580). vllm-safe check gives details."),
    "cuda-fork": _fork,
    "gpu-lost": hint_of(
        f"Waiting does not help: power the machine off and on. If it happens again, check its power, heat and riser. {_CARD}"
    ),
    "ecc": hint_of(
        "nvidia-smi -q -d ECC   shows the counts; a reset of the GPU or a reboot retires the page. If errors return, the GPU is defective."
    ),
    "gpu-assert": hint_of(
        "The lines before it name the check. If it happens again, fetch the model again (vllm-safe fetch) or try another engine.version."
    ),
    "gpu-fault": hint_of(_CARD + " If it reported nothing, the server is at fault: try another engine.version, or args.enforce-eager."),
    "buffers": _cuda_memory,
    "graph-capture": _eager,
    "cuda-refused": hint_of(
        "This is a fault of the program or its settings: try args.enforce-eager, another args.attention-backend, or another engine.version."
    ),
    "duplicate-gpu": hint_of(
        "Each worker needs its own GPU: compare args.tensor-parallel-size and args.data-parallel-size with nvidia-smi -L."
    ),
    "nccl-timeout": _nccl,
    "engine-timeout": _ready,
    "step-timeout": _step,
    "nccl-error": hint_of("Set env.NCCL_DEBUG: INFO for details; profile: pcie-riser is for GPUs on risers."),
    "shm-full": hint_of(_SHM),
}
