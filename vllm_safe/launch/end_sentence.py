"""What an end means, in one sentence, for Status:, the journal, `status` and `why`: the same words, made here."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from vllm_safe.causes.cause import find_cause, last_line
from vllm_safe.causes.death_patterns import BY_ITSELF, describe_death
from vllm_safe.causes.messages import FOLLOWS, Message, without_figures
from vllm_safe.causes.quote import quote_error, with_full_stop, without_full_stop
from vllm_safe.contract.launch_file import Launch
from vllm_safe.launch.server_end import NEVER_CAN_WORK, Ended, Explanation
from vllm_safe.launch.server_process import CANNOT_RUN, describe_ending

_MOST = 1e15  # of a figure: tokens, GiB, cards
_PANIC = re.compile(r"panic: |fatal error: ")  # of Go, which exits with 2 then


class About(NamedTuple):
    """Whose end it was. command: another server than vLLM; health: its URL."""

    name: str
    served: bool
    command: bool
    health: str


def compose_explanation(launch: Launch, ended: Ended) -> Explanation:
    """What is said of an end, and whether a second start can help."""
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
    """What a server says goes before its exit status: some have one for everything."""
    if code in {126, CANNOT_RUN}:
        return True
    if message and (message.code or _PANIC.match(message.text)):
        return message.never_can_work
    return code in NEVER_CAN_WORK or (message is not None and message.never_can_work)


def end_sentence(about: About, message: Message | None, ending: str, tail: Sequence[str]) -> str:
    """How a server ended, and of what. ending: "exit status 1", "killed by SIGKILL"."""
    name = about.name
    follows = message is not None and message.code in FOLLOWS
    if message and message.code and not follows:
        return with_full_stop(f"{name} ended by itself: {describe_error(about, message)}")
    error = quote_error(message.line, command=about.command) if message and not follows else ""
    if ending.startswith("killed by "):
        signal = ending.removeprefix("killed by ")
        if signal not in BY_ITSELF:
            return f"{name} was killed by {signal}."
        return with_full_stop(f"{name} crashed ({signal})" + (f": {error}" if error else ""))
    if message and follows:
        return f"{name} ended because {describe_death(message.kind, message.figures)}."
    when = "while it served" if about.served else "before it was ready"
    if error:
        return with_full_stop(f"{name} ended by itself {when} ({ending}): {error}")
    said = without_full_stop(quote_error(last_line(tail), command=about.command))
    return f"{name} ended by itself {when} ({ending}), and named no error" + (f'; it last said "{said}".' if said else ".")


def describe_error(about: About, message: Message) -> str:
    """What an error that is known means: the end of a sentence, without its point."""
    meaning = WORDS[message.kind]
    if callable(meaning):
        return meaning(message.figures, about.health)
    return meaning.format(line=quote_error(message.figures.get("what") or message.line, command=about.command))


# --- what errors mean


def error_figure(figures: Mapping[str, str], name: str) -> float:
    """A figure of a message, or 0: digits and points are no number yet, and anybody may have printed them."""
    try:
        found = float(figures.get(name, ""))
    except ValueError:
        return 0.0
    return found if found < _MOST else 0.0


def fitting_length(figures: Mapping[str, str]) -> int:
    """The max-model-len for which the KV cache is large enough: vLLM's own estimate, else by proportion; 0 where neither is known."""
    wanted, length, needed, free = (error_figure(figures, name) for name in ("wanted", "length", "needed", "free"))
    return int(length or (wanted * free / needed if needed else 0))


def _kv_cache(figures: Mapping[str, str], _health: str) -> str:
    wanted, needed, free = (error_figure(figures, name) for name in ("wanted", "needed", "free"))
    length = fitting_length(figures)
    space = f"{needed:g} GiB are needed and {free:g} GiB free" if needed and free else ""  # a tiny model's are rounded to 0
    most = f"the longest that fits is {length} tokens" if length else ""
    figured = "; ".join(part for part in (space, most) if part)
    return f"the KV cache is too small for max-model-len {int(wanted)}" + (f": {figured}" if figured else "")


def _gpu_taken(figures: Mapping[str, str], _health: str) -> str:
    device = figures.get("device", "").strip() or "a card"
    free, total = error_figure(figures, "free"), error_figure(figures, "total")
    return f"{device} has too little free memory: {free:g} of {total:g} GiB, and {figures['wanted']} GiB are wanted"


def _cuda_memory(figures: Mapping[str, str], _health: str) -> str:
    if "wanted" in figures:
        return f"a card ran out of memory: {figures['wanted']} were wanted on card {figures['device']}, and {figures['free']} were free"
    return f"a card ran out of memory: {figures['size']} were wanted at once" if "size" in figures else "a card ran out of memory"


def _port(figures: Mapping[str, str], health: str) -> str:
    port = wanted_port(figures, health)
    return f"{'its ' if port == url_port(health) else ''}port {port} is taken by another program"


def wanted_port(figures: Mapping[str, str], health: str) -> int:
    """The port that an error names, else the one of the health URL."""
    return next((int(figures[name]) for name in ("port", "number", "bound", "after", "end") if name in figures), url_port(health))


def url_port(url: str) -> int:
    """The port of a URL."""
    found = re.search(r":(\d+)(?:/|$)", url)
    return int(found[1]) if found else 8000


def error_path(figures: Mapping[str, str]) -> str:
    """The file or folder that an error names, or ""."""
    return next((figures[name] for name in ("path", "file", "script") if name in figures), "")


def _permission(figures: Mapping[str, str], _health: str) -> str:
    path = error_path(figures)
    return f"user vllm may not read or write {path}" if path else "user vllm may not do what it tried (permission denied)"


def _no_file(figures: Mapping[str, str], _health: str) -> str:
    path = error_path(figures)
    return f"{path} is not there, or is not what it was taken for" if path else "a file that it wants is not there"


def _not_fetched(figures: Mapping[str, str], _health: str) -> str:
    whose = f" of {figures['what']}" if "what" in figures else ""
    return f"files{whose} are not on this machine, and it fetches none while it starts"


def _weights(figures: Mapping[str, str], _health: str) -> str:
    name = next(iter(figures.values()), "")
    which = f" {name}" if name else ""
    return f"a weight{which} of its files does not fit the model as vLLM builds it, by name or by shape"


def _resources(figures: Mapping[str, str], _health: str) -> str:
    more = f": {figures['wanted']} of {figures['what']} where {figures['limit']} are there" if "wanted" in figures else ""
    return f"a kernel needs more of a card's own resources than this card has{more}"


def _unsupported(figures: Mapping[str, str], _health: str) -> str:
    name = next((figures[name] for name in ("type", "architecture", "name", "kind") if name in figures), "")
    return f"it does not know this kind of model{f' ({name})' if name else ''}"


def _quantization(figures: Mapping[str, str], _health: str) -> str:
    def capability(name: str) -> str:
        digits = figures.get(name, "")
        return f"{digits[:-1]}.{digits[-1:]}" if len(digits) > 1 else digits

    needs = f": it needs compute capability {capability('wanted')}, and the card has {capability('there')}" if "there" in figures else ""
    return f"the quantization of its model is not for this card{needs}"


def _module(figures: Mapping[str, str], _health: str) -> str:
    return f"{figures.get('module') or figures.get('package')} is not installed where it looked"


def _package(figures: Mapping[str, str], _health: str) -> str:
    return f"it wants {next(iter(figures.values()))}, which is not installed where it looked, or not in a version that it can use"


def _library(figures: Mapping[str, str], _health: str) -> str:
    return f"the library {error_library(figures)} is missing"


def error_library(figures: Mapping[str, str]) -> str:
    """The file of a library that is missing."""
    return f"lib{figures['linked']}.so" if "linked" in figures else next(iter(figures.values()), "")


_Words = str | Callable[[Mapping[str, str], str], str]
_COMPILE = "it wanted to compile a kernel"
WORDS: dict[str, _Words] = {
    "no-program": "there is no such program, or it cannot be run: {line}",
    "wrong-machine": "a program of it was built for another kind of machine: {line}",
    "no-command": lambda figures, _: f"there is no program {figures['program']}",
    "bad-argument": "an option of it is wrong: {line}",
    "bad-setting": "an option of it is wrong: {line}",
    "kv-cache-too-small": _kv_cache,
    "no-kv-cache": "the model's weights leave no memory for the KV cache",
    "cache-blocks": lambda figures, _: f"max-num-seqs {figures['wanted']} is more than the {figures['blocks']} cache blocks that fit",
    "longer-than-model": lambda figures, _: (
        f"max-model-len {figures['wanted']} is more than the model's own {int(error_figure(figures, 'length'))}"
    ),
    "too-few-gpus": lambda figures, _: f"{figures['wanted']} cards are wanted and {figures['gpus']} are there",
    "device-ordinal": "it asked for a card that is not there: {line}",
    "heads": lambda figures, _: f"its {figures['heads']} attention heads cannot be shared by {figures['wanted']} cards",
    "shapes-by-cards": "the shapes of its weights do not suit so many cards, or the kernel: {line}",
    "dtype": "this card cannot compute in bfloat16",
    "gated": "its model is gated: the hub wants to know who asks",
    "remote-code": "its model brings code of its own, which is not trusted",
    "not-fetched": _not_fetched,
    "no-model": "it did not find its model: {line}",
    "no-tokenizer": "the tokenizer's files are missing in its model's folder, or are not whole",
    "damaged-model": "a file of its model is damaged or not whole: {line}",
    "damaged-file": "something that it read is not whole, or not of the format that it takes it for: {line}",
    "unsupported-model": _unsupported,
    "unloadable": "it cannot load its model's file: {line}",
    "quantization": _quantization,
    "quantization-method": "vLLM does not know the quantization, or the model's files have another one: {line}",
    "weights": _weights,
    "no-nvcc": f"{_COMPILE}, and there is no nvcc",
    "nvcc-failed": f"{_COMPILE}, and nvcc could not",
    "flashinfer-cards": "FlashInfer was to compile a kernel and finds no card that it can compile for: {line}",
    "no-ninja": f"{_COMPILE}, and there is no ninja",
    "no-compiler": f"{_COMPILE}, and there is no compiler",
    "compile-cache": "the model could not be compiled, most likely since the cache of an earlier start is damaged",
    "gpu-taken": _gpu_taken,
    "profiling-race": "another program gave memory of a card back while vLLM measured it",
    "gpu-busy": "a card is taken by another program, which has it for itself",
    "cuda-memory": _cuda_memory,
    "buffers": "it got no memory for its buffers, most likely of a card: {line}",
    "pinned-memory": "locked (pinned) memory of the machine was refused to CUDA: {line}",
    "peer-access": "these cards cannot reach each other's memory, which vLLM's own all-reduce wants",
    "no-kernel-image": "this build of vLLM or torch has no code for this card: {line}",
    "kernel-resources": _resources,
    "driver-too-old": "the NVIDIA driver is older than the CUDA that it was built with needs",
    "driver-mismatch": "the NVIDIA driver's libraries and its loaded kernel module are of different versions, as after an upgrade",
    "fabric-manager": "the cards' NVSwitch fabric is not ready: NVIDIA's fabric manager does not run, or is not of the driver's version",
    "mps": "NVIDIA's MPS server did not let it onto the cards: {line}",
    "uvm": "CUDA could not start: the kernel module nvidia_uvm is not loaded, or was lost in a suspend",
    "no-gpu": "it found no usable card: {line}",
    "cuda-fork": "CUDA was in use before a worker was forked, and does not outlive that",
    "gpu-lost": "the driver has lost a card: it does not answer on the bus any more",
    "ecc": "a card's memory failed: an ECC error that could not be corrected",
    "gpu-assert": "a check in its code for the cards did not hold (device-side assert): of the model, its input, or the server",
    "gpu-fault": "its code for the cards went wrong, by a fault of the server or of a card: {line}",
    "graph-capture": "a step of the model cannot be captured in a CUDA graph: {line}",
    "cuda-refused": "CUDA or the driver refuses what it asked for: {line}",
    "duplicate-gpu": "two of its workers were given one card",
    "nccl-timeout": "its cards waited for each other in vain (NCCL timeout)",
    "card-too-old": "this card cannot do what was asked of it: {line}",
    "engine-timeout": "its engine was not ready in the time that vLLM allows",
    "step-timeout": "one step of the model took longer than vLLM allows",
    "nccl-error": "NCCL failed: {line}",
    "shm-full": "there is too little shared memory in its own /dev/shm: {line}",
    "no-threads": "it may start no more threads or processes",
    "kv-space": lambda figures, _: (
        f"{error_figure(figures, 'wanted'):g} GiB of RAM are wanted for the KV cache, and {error_figure(figures, 'free'):g} GiB were free"
    ),
    "no-host-memory": "the kernel refused it memory, by its rule for overcommit: {line}",
    "own-heap": "it reached a limit of memory that is its own: {line}",
    "port-taken": _port,
    "no-address": "an address that it is to use is not this machine's: {line}",
    "locked": "another program has locked a file that it wants: {line}",
    "disk-full": "the disk is full: {line}",
    "io-error": "a disk could not be read or written: {line}",
    "too-many-files": "it has more files open than it may: {line}",
    "privileged-port": "it may not listen on a port below 1024",
    "permission": _permission,
    "missing-library": _library,
    "no-file": _no_file,
    "network": "something that it asked on the network did not answer: {line}",
    "illegal-instruction": "it used an instruction that this processor has not, or does not let it use",
    "no-module": _module,
    "package": _package,
    "old-system": "this system's C or C++ library is older than what it was built for: {line}",
    "broken-engine": "a part of the engine is missing or does not fit another: {line}",
}
