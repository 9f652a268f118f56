"""What to do about an error of cards, their memory, their driver, and of what the cards say to each other."""

from __future__ import annotations

import math
from collections.abc import Mapping

from vllm_safe.decide.why.advice import Advice, Adviser, arg, do, env, on_risers, riser
from vllm_safe.decide.why.verdict import Case, Change
from vllm_safe.launch.messages import Message
from vllm_safe.launch.words import figure, fitting_length


def _kv_cache(case: Case, message: Message) -> Advice:
    length = fitting_length(message.figures)
    change = [arg(case, "max-model-len", str(length), "the longest that vLLM says fits")] if length else _more_gpu(case)
    return Advice(tuple(change))


def _more_gpu(case: Case) -> list[Change]:
    try:
        old = float(case.arg("gpu-memory-utilization"))
    except ValueError:
        old = 0.92  # vllm/config/cache.py:102
    new = min(0.95, old + 0.03)
    return [arg(case, "gpu-memory-utilization", f"{new:.2f}", "more of each card for the KV cache")] if new > old else []


def _no_kv_cache(case: Case, _message: Message) -> Advice:
    return Advice(tuple(_more_gpu(case)), "Else: more cards (args.tensor-parallel-size), or a model with fewer bits.")


def _cache_blocks(case: Case, message: Message) -> Advice:
    return Advice((arg(case, "max-num-seqs", message.figures["blocks"], "as many as fit, by vLLM"),))


def _gpu_taken(case: Case, message: Message) -> Advice:
    free, total = figure(message.figures, "free"), figure(message.figures, "total")
    share = math.floor(100 * free / total - 1) / 100 if total else 0.0
    change = arg(case, "gpu-memory-utilization", f"{share:.2f}", f"{free:g} of {total:g} GiB were free")
    return Advice((change,) if share >= 0.1 else (), "nvidia-smi shows what holds the card: an old process, a desktop?")


def _cuda_memory(case: Case, _message: Message) -> Advice:
    try:
        old = float(case.arg("gpu-memory-utilization"))
        share = max(min(0.5, old), old - 0.05)
    except ValueError:
        share = 0.87  # vLLM's default is 0.92
    seqs, length = case.arg("max-num-seqs"), case.arg("max-model-len")
    changes = [
        arg(case, "gpu-memory-utilization", f"{share:.2f}", "leaves more for what vLLM does not plan"),
        arg(case, "max-num-seqs", str(max(1, int(seqs) // 2)) if seqs.isdecimal() else "16", "fewer requests at once"),
    ]
    if length.isdecimal() and int(length) > 2048:
        changes.append(arg(case, "max-model-len", str(int(length) // 2), "shorter requests"))
    return Advice(tuple(changes))


def _too_few_gpus(case: Case, message: Message) -> Advice:
    gpus = message.figures["gpus"]
    change = Change(case.path("args.tensor-parallel-size"), message.figures["wanted"], gpus, f"{gpus} cards answer")
    return Advice((change,) if gpus != "0" else (), "If one is missing: nvidia-smi, journalctl -k -g NVRM")


def _heads(case: Case, message: Message) -> Advice:
    heads, wanted = int(figure(message.figures, "heads")), int(figure(message.figures, "wanted"))
    new = next((size for size in range(max(1, wanted - 1), 0, -1) if heads % size == 0), 1)
    return Advice((Change(case.path("args.tensor-parallel-size"), str(wanted), str(new), f"divides {heads}"),))


def _fewer_cards(case: Case, _message: Message) -> Advice:
    old = case.arg("tensor-parallel-size")
    half = (arg(case, "tensor-parallel-size", str(int(old) // 2), "larger shares of each weight"),) if old.isdecimal() and old > "1" else ()
    return Advice(half, "More cards do share it with args.pipeline-parallel-size: whole layers for each.")


def _nccl(case: Case, message: Message) -> Advice:
    old = case.arg("distributed-timeout-seconds")
    allowed = max(int(figure(message.figures, "allowed") / 1000), int(old) if old.isdecimal() else 0) or 600
    changes = (
        *riser(case),
        arg(case, "distributed-timeout-seconds", str(max(7200, 2 * allowed)), f"{allowed} s were not enough"),
    )
    hint = "A riser or its cable: journalctl -k -g 'NVRM|AER|pcieport' shows link errors; a slower link (Gen1 in the BIOS) is a steady one."
    return Advice(changes, hint)


def _peer_access(case: Case, _message: Message) -> Advice:
    change = arg(case, "disable-custom-all-reduce", "true", "NCCL's all-reduce instead, which goes through the machine's RAM")
    return Advice((change,), "profile: pcie-riser sets it, with what else such cards need.")


def _step(case: Case, _message: Message) -> Advice:
    name = "VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS"
    old = case.env(name)
    seconds = max(1800, 2 * int(old)) if old.isdecimal() and len(old) < 7 else 1800
    narrow = on_risers(case)
    slow = f"; {narrow}, and a step over x1 takes minutes" if narrow else ""
    changes = [env(case, name, str(seconds), f"300 s by default{slow}")]
    if case.run.start.times.get("hang_timeout", 0.0) <= seconds:
        changes += case.longer("hang_timeout", "else it is ended before vLLM can say what hangs", least=seconds)
    hint = "profile: pcie-riser sets both, with what else risers need." if narrow and case.run.start.profile != "pcie-riser" else ""
    return Advice(tuple(changes), hint)


def _ready(case: Case, _message: Message) -> Advice:
    name = "VLLM_ENGINE_READY_TIMEOUT_S"
    old = case.env(name)
    seconds = max(14400, 2 * int(old)) if old.isdecimal() and len(old) < 7 else 14400
    return Advice((env(case, name, str(seconds), "600 s by default; a large model takes hours from a slow disk"),))


def _dtype(case: Case, _message: Message) -> Advice:
    return Advice((arg(case, "dtype", "half", "float16, which older cards can do"),))


def _fork(case: Case, _message: Message) -> Advice:
    return Advice((env(case, "VLLM_WORKER_MULTIPROC_METHOD", "spawn", "each worker starts anew: slower, and with more memory"),))


def _eager(case: Case, _message: Message) -> Advice:
    return Advice((arg(case, "enforce-eager", "true", "no CUDA graphs: slower"),))


_SHM = (
    "This unit's /dev/shm is its own, half of the RAM: the host's has no part in it. systemctl edit vllm@.service, [Service], "
    "TemporaryFileSystem=/dev/shm:mode=1777,nosuid,nodev,size=75%; what is used counts against limits.memory_max. Fewer cards need less."
)
_CARD = "journalctl -k -g NVRM   shows what the driver says of it (Xid)."
CARDS: Mapping[str, Adviser] = {
    "kv-cache-too-small": _kv_cache,
    "no-kv-cache": _no_kv_cache,
    "cache-blocks": _cache_blocks,
    "too-few-gpus": _too_few_gpus,
    "device-ordinal": do("nvidia-smi lists those that are there; if one is missing: journalctl -k -g NVRM"),
    "heads": _heads,
    "shapes-by-cards": _fewer_cards,
    "dtype": _dtype,
    "quantization": do("Another quantization of the model (AWQ and GPTQ need less of a card than FP8 and NVFP4), or a newer card."),
    "gpu-taken": _gpu_taken,
    "profiling-race": do("Nothing else may begin or end on the card while it starts: nvidia-smi shows what is there."),
    "gpu-busy": do("nvidia-smi shows what holds the card; nvidia-smi -c DEFAULT lets several programs have it."),
    "cuda-memory": _cuda_memory,
    "pinned-memory": do(
        "It counts against limits.memory_max and cannot be swapped; the unit's LimitMEMLOCK= sets no bound. Leave it more RAM, or ask for "
        "less of it (args.cpu-offload-gb, args.kv-offloading-size)."
    ),
    "peer-access": _peer_access,
    "no-kernel-image": do(
        "Another engine.version that has it: vllm-safe install. nvidia-smi --query-gpu=name,compute_cap --format=csv shows the card."
    ),
    "kernel-resources": do("Another args.attention-backend, another model, or another engine.version may fit."),
    "driver-too-old": do(
        "CUDA 13 needs R580. A newer driver (nvidia-driver of Debian's backports or NVIDIA's repository), or an engine.version for CUDA 12."
    ),
    "driver-mismatch": do("Reboot: until then each start ends so. dpkg -l 'nvidia*' shows the installed version."),
    "fabric-manager": do("systemctl status nvidia-fabricmanager; its package must be of the driver's very version."),
    "mps": do("Is nvidia-cuda-mps-control meant to run? It must be of the same user (vllm), or be stopped."),
    "uvm": do(
        "modprobe -r nvidia_uvm; modprobe nvidia_uvm   or reboot. systemctl status vllm-safe-nvidia   shows how its load at boot went."
    ),
    "no-gpu": do("nvidia-smi; the driver must be loaded, and be new enough (R580). vllm-safe check says more."),
    "cuda-fork": _fork,
    "gpu-lost": do("Waiting does not help: power the machine off and on. Then the card's power, heat and riser. " + _CARD),
    "ecc": do("nvidia-smi -q -d ECC   counts them; a reset of the card or a reboot retires the page. If it comes back, the card is bad."),
    "gpu-assert": do("The lines before it name the check. A damaged model (vllm-safe fetch) or another engine.version, if it comes again."),
    "gpu-fault": do(_CARD + " Where it says nothing, the server is at fault: another engine.version, args.enforce-eager."),
    "buffers": _cuda_memory,
    "graph-capture": _eager,
    "cuda-refused": do("A fault of the program or of its settings: args.enforce-eager, another args.attention-backend or engine.version."),
    "duplicate-gpu": do("One card for each worker: args.tensor-parallel-size and args.data-parallel-size against nvidia-smi -L."),
    "nccl-timeout": _nccl,
    "engine-timeout": _ready,
    "step-timeout": _step,
    "nccl-error": do("With env.NCCL_DEBUG: INFO it says more; profile: pcie-riser is for cards on risers."),
    "shm-full": do(_SHM),
}
