"""The sentence that explains an end. Status:, the journal, `status` and `why` all show this one sentence."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from vllm_safe.causes.cause import find_cause
from vllm_safe.causes.death_patterns import BY_ITSELF, describe_death
from vllm_safe.causes.messages import FOLLOWS, Message, without_figures
from vllm_safe.causes.quote import quote_error, with_full_stop, without_full_stop
from vllm_safe.common.terminal import last_line
from vllm_safe.contract.launch_file import Launch
from vllm_safe.launch.server_end import NEVER_CAN_WORK, Ended, Explanation
from vllm_safe.launch.server_process import CANNOT_RUN, describe_ending

_MOST = 1e15  # the limit of a figure: tokens, GiB, GPUs
_PANIC = re.compile(r"panic: |fatal error: ")  # printed by Go, which then exits with status 2


class About(NamedTuple):
    """The server whose end is explained. command: it is not vLLM. health: its health URL."""

    name: str
    served: bool
    command: bool
    health: str


def compose_explanation(launch: Launch, ended: Ended) -> Explanation:
    """Explain an end, and decide whether a second start can help."""
    message = find_cause(ended.head, ended.tail, served=ended.served)
    about = About(launch.name, ended.served, not launch.serve_file, launch.health)
    error = message.text if message else ""
    return Explanation(
        end_sentence(about, message, describe_ending(ended.status), ended.tail),
        error,
        never=_can_never_work(os.waitstatus_to_exitcode(ended.status), message),
        again=bool(ended.before) and without_figures(error) == without_figures(ended.before),
    )


def _can_never_work(code: int, message: Message | None) -> bool:
    """Decide whether no second start can work. The error takes precedence over the exit status: some servers use one for all errors."""
    if code in {126, CANNOT_RUN}:
        return True
    if message and (message.code or _PANIC.match(message.text)):
        return message.never_can_work
    return code in NEVER_CAN_WORK or (message is not None and message.never_can_work)


def end_sentence(about: About, message: Message | None, ending: str, tail: Sequence[str]) -> str:
    """Compose the sentence that says how a server ended and why. ending: "exit status 1", "killed by SIGKILL"."""
    name = about.name
    follows = message is not None and message.code in FOLLOWS
    if message and message.code and not follows:
        return with_full_stop(f"{name} exited: {describe_error(about, message)}")
    error = quote_error(message.line, command=about.command) if message and not follows else ""
    if ending.startswith("killed by "):
        signal = ending.removeprefix("killed by ")
        if signal not in BY_ITSELF:
            # A server may end itself with SIGKILL after an error: SGLang does (srt/utils.py, kill_process_tree).
            after = f" before it was ready, after an error: {error}" if error and not about.served else ""
            return with_full_stop(f"{name} was killed by {signal}{after}")
        return with_full_stop(f"{name} crashed ({signal})" + (f": {error}" if error else ""))
    if message and follows:
        return f"{name} exited because {describe_death(message.kind, message.figures)}."
    when = "while serving" if about.served else "before it was ready"
    if error:
        return with_full_stop(f"{name} exited {when} ({ending}): {error}")
    last = without_full_stop(quote_error(last_line(tail), command=about.command))
    return f"{name} exited {when} ({ending}) without an error message" + (f'; its last line was "{last}".' if last else ".")


def describe_error(about: About, message: Message) -> str:
    """Describe an error that matched a pattern: the end of a sentence, without a full stop."""
    meaning = WORDS[message.kind]
    if callable(meaning):
        return meaning(message.figures, about.health)
    return meaning.format(line=quote_error(message.figures.get("what") or message.line, command=about.command))


# --- meanings of errors


def error_figure(figures: Mapping[str, str], name: str) -> float:
    """Return a figure of a message as a number, or 0 if it is missing, malformed or too large: the message may contain anything."""
    try:
        found = float(figures.get(name, ""))
    except ValueError:
        return 0.0
    return found if found < _MOST else 0.0


def fitting_length(figures: Mapping[str, str]) -> int:
    """Return the largest max-model-len that the KV cache can hold: vLLM's own estimate, else in proportion; 0 where neither is known."""
    wanted, length, needed, free = (error_figure(figures, name) for name in ("wanted", "length", "needed", "free"))
    return int(length or (wanted * free / needed if needed else 0))


def _kv_cache(figures: Mapping[str, str], _health: str) -> str:
    wanted, needed, free = (error_figure(figures, name) for name in ("wanted", "needed", "free"))
    length = fitting_length(figures)
    space = f"{needed:g} GiB are needed and {free:g} GiB free" if needed and free else ""  # the figures of a tiny model are rounded to 0
    most = f"at most {length} tokens fit" if length else ""
    figured = "; ".join(part for part in (space, most) if part)
    return f"the KV cache is too small for max-model-len {int(wanted)}" + (f": {figured}" if figured else "")


def _gpu_taken(figures: Mapping[str, str], _health: str) -> str:
    device = figures.get("device", "").strip() or "a GPU"
    free, total = error_figure(figures, "free"), error_figure(figures, "total")
    return f"{device} has too little free memory: {free:g} of {total:g} GiB are free, and {figures['wanted']} GiB are required"


def _cuda_memory(figures: Mapping[str, str], _health: str) -> str:
    if "wanted" in figures:
        return f"a GPU ran out of memory: {figures['wanted']} were requested on GPU {figures['device']}, and {figures['free']} were free"
    return f"a GPU ran out of memory: {figures['size']} were requested at once" if "size" in figures else "a GPU ran out of memory"


def _port(figures: Mapping[str, str], health: str) -> str:
    port = wanted_port(figures, health)
    return f"{'its ' if port == url_port(health) else ''}port {port} is already in use by another program"


def wanted_port(figures: Mapping[str, str], health: str) -> int:
    """Return the port that an error names, else the port of the health URL."""
    return next((int(figures[name]) for name in ("port", "number", "bound", "after", "end") if name in figures), url_port(health))


def url_port(url: str) -> int:
    """Return the port of a URL, or 8000 if it has none."""
    found = re.search(r":(\d+)(?:/|$)", url)
    return int(found[1]) if found else 8000


def error_path(figures: Mapping[str, str]) -> str:
    """Return the file or directory that an error names, or ""."""
    return next((figures[name] for name in ("path", "file", "script") if name in figures), "")


def _permission(figures: Mapping[str, str], _health: str) -> str:
    path = error_path(figures)
    return f"user vllm may not read or write {path}" if path else "user vllm lacks a permission that it needs (permission denied)"


def _no_file(figures: Mapping[str, str], _health: str) -> str:
    path = error_path(figures)
    return f"{path} does not exist, or is not of the expected type" if path else "a required file does not exist"


def _not_fetched(figures: Mapping[str, str], _health: str) -> str:
    whose = f" of {figures['what']}" if "what" in figures else ""
    return f"files{whose} are not on this machine, and nothing is downloaded during a start"


def _weights(figures: Mapping[str, str], _health: str) -> str:
    name = next(iter(figures.values()), "")
    which = f" {name}" if name else ""
    return f"a weight{which} in the model's files does not match the model as vLLM builds it, by name or by shape"


def _resources(figures: Mapping[str, str], _health: str) -> str:
    more = f": {figures['wanted']} of {figures['what']}, and the limit is {figures['limit']}" if "wanted" in figures else ""
    return f"a kernel requires more resources than this GPU has{more}"


def _unsupported(figures: Mapping[str, str], _health: str) -> str:
    name = next((figures[name] for name in ("type", "architecture", "name", "kind") if name in figures), "")
    return f"this type of model is not supported{f' ({name})' if name else ''}"


def _quantization(figures: Mapping[str, str], _health: str) -> str:
    def capability(name: str) -> str:
        digits = figures.get(name, "")
        return f"{digits[:-1]}.{digits[-1:]}" if len(digits) > 1 else digits

    needs = f": it requires compute capability {capability('wanted')}, and the GPU has {capability('there')}" if "there" in figures else ""
    return f"this GPU does not support the quantization of the model{needs}"


def _module(figures: Mapping[str, str], _health: str) -> str:
    return f"the module {figures.get('module') or figures.get('package')} was not found"


def _package(figures: Mapping[str, str], _health: str) -> str:
    return f"it requires {next(iter(figures.values()))}, which was not found, or not in a suitable version"


def _library(figures: Mapping[str, str], _health: str) -> str:
    return f"the shared library {error_library(figures)} was not found"


def error_library(figures: Mapping[str, str]) -> str:
    """Return the file name of a missing library."""
    return f"lib{figures['linked']}.so" if "linked" in figures else next(iter(figures.values()), "")


_Words = str | Callable[[Mapping[str, str], str], str]
_COMPILE = "a kernel had to be compiled"
WORDS: dict[str, _Words] = {
    "no-program": "the program does not exist, or cannot be run: {line}",
    "wrong-machine": "a program was built for another architecture: {line}",
    "no-command": lambda figures, _: f"the program {figures['program']} was not found",
    "bad-argument": "an option is invalid: {line}",
    "bad-setting": "an option is invalid: {line}",
    "kv-cache-too-small": _kv_cache,
    "no-kv-cache": "the model's weights leave no memory for the KV cache",
    "cache-blocks": lambda figures, _: f"max-num-seqs {figures['wanted']} exceeds the {figures['blocks']} cache blocks that fit",
    "longer-than-model": lambda figures, _: (
        f"max-model-len {figures['wanted']} exceeds the model's maximum of {int(error_figure(figures, 'length'))}"
    ),
    "too-few-gpus": lambda figures, _: f"{figures['wanted']} GPUs are required, and {figures['gpus']} are available",
    "device-ordinal": "it selected a GPU that does not exist: {line}",
    "heads": lambda figures, _: f"the model's {figures['heads']} attention heads cannot be divided among {figures['wanted']} GPUs",
    "shapes-by-cards": "the shapes of the weights do not suit this number of GPUs, or the kernel: {line}",
    "dtype": "this GPU does not support bfloat16",
    "gated": "the model is gated: the hub requires authentication",
    "remote-code": "the model contains code of its own, which is not trusted",
    "not-fetched": _not_fetched,
    "no-model": "the model was not found: {line}",
    "no-tokenizer": "the tokenizer's files in the model's directory are missing or incomplete",
    "damaged-model": "a file of its model is damaged or incomplete: {line}",
    "damaged-file": "data that it read is incomplete, or not in the expected format: {line}",
    "unsupported-model": _unsupported,
    "unloadable": "the model's file cannot be loaded: {line}",
    "quantization": _quantization,
    "quantization-method": "vLLM does not support the quantization, or the model's files use another one: {line}",
    "weights": _weights,
    "no-nvcc": f"{_COMPILE}, and nvcc was not found",
    "nvcc-failed": f"{_COMPILE}, and nvcc failed",
    "flashinfer-cards": "FlashInfer had to compile a kernel, and found no GPU that it can compile for: {line}",
    "no-ninja": f"{_COMPILE}, and ninja was not found",
    "no-compiler": f"{_COMPILE}, and no compiler was found",
    "compile-cache": "the model could not be compiled, most likely because the compile cache of an earlier start is damaged",
    "gpu-taken": _gpu_taken,
    "profiling-race": "another program released GPU memory while vLLM measured it",
    "gpu-busy": "another program uses a GPU exclusively",
    "cuda-memory": _cuda_memory,
    "buffers": "memory for buffers could not be allocated, most likely on a GPU: {line}",
    "pinned-memory": "CUDA could not allocate locked (pinned) host memory: {line}",
    "peer-access": "these GPUs cannot access each other's memory, which vLLM's custom all-reduce requires",
    "no-kernel-image": "this build of vLLM or torch contains no code for this GPU: {line}",
    "kernel-resources": _resources,
    "driver-too-old": "the NVIDIA driver is too old for the CUDA version that it was built with",
    "driver-mismatch": "the NVIDIA driver's libraries and its loaded kernel module have different versions, as after an upgrade",
    "fabric-manager": "the NVSwitch fabric is not ready: NVIDIA's Fabric Manager is not running, or its version differs from the driver's",
    "mps": "NVIDIA's MPS server refused access to the GPUs: {line}",
    "uvm": "CUDA could not be initialized: the kernel module nvidia_uvm is not loaded, or was lost in a suspend",
    "no-gpu": "no usable GPU was found: {line}",
    "cuda-fork": "CUDA was initialized before a worker was forked, which CUDA does not support",
    "gpu-lost": "the driver has lost a GPU: it no longer responds on the bus",
    "ecc": "the memory of a GPU failed: an uncorrectable ECC error",
    "gpu-assert": "an assertion in GPU code failed (device-side assert): a fault of the model, its input, or the server",
    "gpu-fault": "GPU code failed, by a fault of the server or of a GPU: {line}",
    "graph-capture": "a step of the model cannot be captured in a CUDA graph: {line}",
    "cuda-refused": "CUDA or the driver rejected an operation: {line}",
    "duplicate-gpu": "two workers were assigned the same GPU",
    "nccl-timeout": "GPU communication timed out (NCCL)",
    "card-too-old": "this GPU does not support a feature that is required: {line}",
    "engine-timeout": "the engine was not ready in the time that vLLM allows",
    "step-timeout": "one step of the model took longer than vLLM allows",
    "nccl-error": "NCCL failed: {line}",
    "shm-full": "there is too little shared memory in the unit's own /dev/shm: {line}",
    "no-threads": "no more threads or processes could be started",
    "kv-space": lambda figures, _: (
        f"{error_figure(figures, 'wanted'):g} GiB of RAM are required for the KV cache, and {error_figure(figures, 'free'):g} GiB were free"
    ),
    "no-host-memory": "the kernel refused to allocate memory, by its overcommit policy: {line}",
    "own-heap": "it reached a memory limit that it sets itself: {line}",
    "port-taken": _port,
    "no-address": "an address that it was told to use does not belong to this machine: {line}",
    "locked": "another program has locked a file that it needs: {line}",
    "disk-full": "the disk is full: {line}",
    "io-error": "a disk could not be read or written: {line}",
    "too-many-files": "the limit of open files has been reached: {line}",
    "privileged-port": "it may not listen on a port below 1024",
    "permission": _permission,
    "missing-library": _library,
    "no-file": _no_file,
    "network": "a network connection failed: {line}",
    "illegal-instruction": "it used a CPU instruction that this processor does not support, or does not permit",
    "no-module": _module,
    "package": _package,
    "old-system": "this system's C or C++ library is older than the one that it was built for: {line}",
    "broken-engine": "a part of the engine is missing, or incompatible with another part: {line}",
}
