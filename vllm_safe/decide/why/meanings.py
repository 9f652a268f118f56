"""What a server's message means for a person: the end of a sentence, the setting to change, and its value from the figures."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import NamedTuple

from vllm_safe.decide.why.verdict import Case, Change
from vllm_safe.launch.messages import Message

_SHOWN = 300  # characters of a line


class Explained(NamedTuple):
    """What a message means: the sentence's end, what to change, what to do besides."""

    what: str
    changes: tuple[Change, ...] = ()
    hint: str = ""


def _figure(message: Message, name: str) -> float:
    """A figure of a message, or 0. vLLM prints digits and points only."""
    try:
        return float(message.figures.get(name, ""))
    except ValueError:
        return 0.0


def _kv_cache(case: Case, message: Message) -> Explained:
    wanted, length, needed, free = (_figure(message, name) for name in ("wanted", "length", "needed", "free"))
    if not length and needed:
        length = wanted * free / needed
    fitting = int(length) // 256 * 256 or int(length)
    changes = [Change(case.path("args.max-model-len"), case.arg("max-model-len"), str(fitting), "the longest that vLLM says fits")]
    gpu = [] if fitting else _more_gpu(case)
    most = f"; the longest that fits is {int(length)} tokens" if length else ""
    what = f"the KV cache is too small for max-model-len {int(wanted)}: {needed:g} GiB are needed and {free:g} GiB free{most}"
    return Explained(what, tuple(changes if fitting else gpu))


def _more_gpu(case: Case) -> list[Change]:
    share = case.arg("gpu-memory-utilization")
    try:
        old = float(share)
    except ValueError:
        old = 0.92  # vllm/config/cache.py:102
    new = min(0.95, old + 0.03)
    if new <= old:
        return []
    return [Change(case.path("args.gpu-memory-utilization"), share, f"{new:.2f}", "more of each card for the KV cache")]


def _no_kv_cache(case: Case, _message: Message) -> Explained:
    return Explained(
        "the model's weights leave no memory for the KV cache",
        tuple(_more_gpu(case)),
        "Else: more cards (tensor-parallel-size), or a model with fewer bits.",
    )


def _longer_than_model(case: Case, message: Message) -> Explained:
    length = str(int(_figure(message, "length")))
    change = Change(case.path("args.max-model-len"), case.arg("max-model-len"), length, "what the model was made for")
    return Explained(f"max-model-len {message.figures['wanted']} is more than the model's own {length}", (change,))


def _gpu_taken(case: Case, message: Message) -> Explained:
    free, total = _figure(message, "free"), _figure(message, "total")
    share = math.floor(100 * free / total - 1) / 100 if total else 0.0
    reason = f"{free:g} of {total:g} GiB were free"
    change = Change(case.path("args.gpu-memory-utilization"), case.arg("gpu-memory-utilization"), f"{share:.2f}", reason)
    device = message.figures.get("device", "").strip() or "a card"
    what = f"{device} has too little free memory: {free:g} of {total:g} GiB, and {message.figures['wanted']} GiB are wanted"
    return Explained(what, (change,) if share >= 0.1 else (), "nvidia-smi shows what holds the card: an old process, a desktop?")


def _cuda_memory(case: Case, message: Message) -> Explained:
    old = case.arg("gpu-memory-utilization")
    try:
        share = max(min(0.5, float(old)), float(old) - 0.05)
    except ValueError:
        share = 0.87  # vLLM's default is 0.92
    seqs, length = case.arg("max-num-seqs"), case.arg("max-model-len")
    changes = [
        Change(case.path("args.gpu-memory-utilization"), old, f"{share:.2f}", "leaves more for what vLLM does not plan"),
        Change(case.path("args.max-num-seqs"), seqs, str(max(1, int(seqs) // 2)) if seqs.isdecimal() else "16", "fewer requests at once"),
    ]
    if length.isdecimal() and int(length) > 2048:
        changes.append(Change(case.path("args.max-model-len"), length, str(int(length) // 2), "shorter requests"))
    figures = message.figures
    more = f": {figures['wanted']} were wanted on card {figures['device']}, and {figures['free']} were free" if "wanted" in figures else ""
    return Explained(f"CUDA ran out of memory{more}", tuple(changes))


def _kv_space(case: Case, message: Message) -> Explained:
    free, wanted = _figure(message, "free"), _figure(message, "wanted")
    less = str(max(1, int(free * 0.7)))
    change = Change(case.path("env.VLLM_CPU_KVCACHE_SPACE"), f"{wanted:g}", less, f"{free:g} GiB of RAM were free")
    return Explained(
        f"{wanted:g} GiB of RAM are wanted for the KV cache, and {free:g} GiB were free", (change,) if float(less) < wanted else ()
    )


def _port(case: Case, _message: Message) -> Explained:
    port = re.search(r":(\d+)(?:/|$)", case.run.start.health)
    number = int(port[1]) if port else 8000
    change = Change(case.path("port"), str(number), str(number + 1 if number < 65535 else number - 1), "if both are to run")
    return Explained(f"its port {number} is taken by another program", (change,), f"ss -ltnp 'sport = :{number}' says which.")


def _too_few_gpus(case: Case, message: Message) -> Explained:
    gpus = message.figures["gpus"]
    change = Change(case.path("args.tensor-parallel-size"), message.figures["wanted"], gpus, f"{gpus} cards answer")
    return Explained(
        f"{message.figures['wanted']} cards are wanted and {gpus} are there",
        (change,) if gpus != "0" else (),
        "If one is missing: nvidia-smi, journalctl -k -g NVRM",
    )


def _heads(case: Case, message: Message) -> Explained:
    heads, wanted = int(_figure(message, "heads")), int(_figure(message, "wanted"))
    new = next((size for size in range(max(1, wanted - 1), 0, -1) if heads % size == 0), 1)
    change = Change(case.path("args.tensor-parallel-size"), str(wanted), str(new), f"divides {heads}")
    return Explained(f"its {heads} attention heads cannot be shared by {wanted} cards", (change,))


def _nccl(case: Case, message: Message) -> Explained:
    old = case.arg("distributed-timeout-seconds")
    allowed = max(int(_figure(message, "allowed") / 1000), int(old) if old.isdecimal() else 0) or 600
    p2p = "cards on risers hang when they talk to each other directly: NCCL_P2P_DISABLE=1"
    changes = (
        Change(case.path("profile"), case.run.start.profile, "pcie-riser", p2p),
        Change(case.path("args.distributed-timeout-seconds"), old, str(max(7200, 2 * allowed)), f"{allowed} s were not enough"),
    )
    hint = "A riser or its cable: journalctl -k -g 'NVRM|AER|pcieport' shows link errors; a slower link (Gen1 in the BIOS) is a steady one."
    return Explained("its cards waited for each other in vain (NCCL timeout)", changes, hint)


def _step(case: Case, _message: Message) -> Explained:
    name = "VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS"
    old = case.env(name)
    seconds = max(1800, 2 * int(old)) if old.isdecimal() and len(old) < 7 else 1800
    changes = [Change(case.path(f"env.{name}"), old, str(seconds), "300 s by default; a step over a x1 riser takes minutes")]
    if case.run.start.times.get("hang_timeout", 0.0) <= seconds:
        changes += case.longer("hang_timeout", "else it is ended before vLLM can say what hangs", least=seconds)
    riser = case.run.start.profile == "pcie-riser"
    hint = "" if riser else "profile: pcie-riser sets both, with what else risers need."
    return Explained("one step of the model took longer than vLLM allows", tuple(changes), hint)


def _nvcc(case: Case, _message: Message) -> Explained:
    name = "VLLM_USE_FLASHINFER_SAMPLER"
    if case.env(name) == "0":
        return Explained(
            "it wanted to compile a kernel, and there is no nvcc", hint="A CUDA toolkit has it: apt install nvidia-cuda-toolkit"
        )
    change = Change(case.path(f"env.{name}"), case.env(name), '"0"', "then nothing is compiled with nvcc (vllm issue 49497)")
    return Explained("it wanted to compile a kernel, and there is no nvcc", (change,))


def _compiler(case: Case, _message: Message) -> Explained:
    change = Change(case.path("args.enforce-eager"), case.arg("enforce-eager"), "true", "less is compiled, and it is slower")
    return Explained("it wanted to compile, and there is no compiler", (change,), "Better: apt install gcc g++ libc6-dev python3-dev")


def _model(case: Case, _message: Message) -> Explained:
    hint = f"Is models.{case.name}.model right? Then: vllm-safe fetch {case.name}"
    return Explained("it did not find its model", hint=hint)


def _gated(case: Case, _message: Message) -> Explained:
    change = Change("engine.hub_token_file", "", "/etc/vllm-safe/hub-token", "a file that only root reads, with a token of the hub")
    hint = f"Accept the model's licence on its page on the hub; then: vllm-safe fetch {case.name}"
    return Explained("its model is gated: the hub wants to know who asks", (change,), hint)


def _damaged(case: Case, _message: Message) -> Explained:
    return Explained("a file of its model is damaged or not whole", hint=f"vllm-safe fetch {case.name}   brings what is missing.")


def _remote_code(case: Case, _message: Message) -> Explained:
    change = Change(
        case.path("args.trust-remote-code"), "unset", "true", "runs Python out of the model's folder: only if you trust who made it"
    )
    return Explained("its model brings code of its own, which is not trusted", (change,))


def _setting(case: Case, message: Message) -> Explained:
    what = message.figures.get("what") or message.line[:_SHOWN]
    return Explained(f"an option of it is wrong: {what.rstrip('.')}", hint=f"See models.{case.name}.args; vllm-safe show {case.name}")


def _disk(_case: Case, message: Message) -> Explained:
    return Explained(f"the disk is full: {message.line[:_SHOWN].rstrip('.')}", hint="df -h; du -xh --max-depth=2 /var | sort -h | tail")


def _said(what: str, hint: str = "") -> Callable[[Case, Message], Explained]:
    """A meaning without a setting."""
    return lambda _case, message: Explained(what.format(line=message.line[:_SHOWN].rstrip(".")), hint=hint)


MEANINGS: dict[str, Callable[[Case, Message], Explained]] = {
    "no-program": _said("there is no such program: {line}", "See its `command`, or run: vllm-safe install"),
    "bad-argument": _setting,
    "bad-setting": _setting,
    "kv-cache-too-small": _kv_cache,
    "no-kv-cache": _no_kv_cache,
    "longer-than-model": _longer_than_model,
    "gpu-taken": _gpu_taken,
    "cuda-memory": _cuda_memory,
    "kv-space": _kv_space,
    "shm-full": _said("there is too little shared memory: {line}", "mount -o remount,size=50% /dev/shm"),
    "too-few-gpus": _too_few_gpus,
    "heads": _heads,
    "gated": _gated,
    "remote-code": _remote_code,
    "not-fetched": _model,
    "no-model": _model,
    "damaged-model": _damaged,
    "unsupported-model": _said("vLLM cannot serve this model here: {line}", "Another engine.version may; vllm-safe install brings it."),
    "no-nvcc": _nvcc,
    "no-compiler": _compiler,
    "nccl-timeout": _nccl,
    "step-timeout": _step,
    "nccl-error": _said(
        "NCCL failed: {line}", "With `env: {{NCCL_DEBUG: INFO}}` it says more; profile: pcie-riser is for cards on risers."
    ),
    "no-gpu": _said("it found no usable card: {line}", "nvidia-smi; the driver must be loaded, and be new enough (R580)"),
    "gpu-fault": _said("a card failed: {line}", "journalctl -k -g NVRM has the driver's own word (Xid): a riser, its power, or the card"),
    "port-taken": _port,
    "disk-full": _disk,
    "no-host-memory": _said("the kernel refused it memory: {line}", "More swap (swap.size), or more limits.memory_max"),
    "missing-library": _said("a library is missing: {line}", "apt-file search NAME says which package has it"),
    "illegal-instruction": _said(
        "it used an instruction that this processor has not, or does not let it use",
        "lscpu shows the processor's flags: vLLM's CPU build needs AVX2 at least. If it has amx_tile: vllm-safe install --reinstall",
    ),
}
