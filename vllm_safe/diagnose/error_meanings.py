"""What to do about an error that is known: the setting to change, its value from the figures, and what to do besides.

What the error means is said in launch/end_sentence.py, for the main process too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from vllm_safe.causes.messages import Message
from vllm_safe.common import paths
from vllm_safe.diagnose.advice import Advice, Adviser, change_argument, change_variable, hint_of
from vllm_safe.diagnose.card_meanings import CARDS
from vllm_safe.diagnose.kill_verdicts import more_swap
from vllm_safe.diagnose.verdict import Case, SettingChange
from vllm_safe.launch.end_sentence import error_figure, error_library, error_path, url_port, wanted_port


def advise(case: Case, message: Message) -> Advice:
    """What to do. `args` are vLLM's: another server has its options in `command`."""
    advice = ADVICE[message.kind](case, message)
    if not case.run.start.command:
        return advice
    changes = tuple(change for change in advice.changes if not _VLLMS.search(change.path))
    return Advice(changes, _COMMAND.get(message.kind, advice.hint).format(command=case.path("command")))


_VLLMS = re.compile(r"^engine\.|\.args\.|\.env\.VLLM_|\.profile$|\.port$")  # settings that mean nothing to another server
# Of a server that is not vLLM.
_COMMAND = {
    "cuda-memory": "Less of it on the card, by {command}: fewer layers (--n-gpu-layers), a smaller context. nvidia-smi shows who else is.",
    "bad-argument": "See {command}.",
    "no-model": "Does the path in {command} exist, and may user vllm read it? namei -l PATH",
    "damaged-model": "Fetch the file that {command} names once more.",
    "gpu-fault": "journalctl -k -g NVRM   shows what the driver says of it (Xid). Where it says nothing, the program is at fault.",
    "no-ninja": "apt install ninja-build; it must be on the PATH of the model (env.PATH).",
    "gpu-assert": "The lines before it name the check. A damaged model, or a fault of the program: a newer one, in {command}?",
    "pinned-memory": "It counts against limits.memory_max and cannot be swapped. Leave it more RAM, or have it lock less, in {command}.",
    "cuda-refused": "A newer version of the program, or other options, in {command}.",
    "graph-capture": "An option of the program that makes no CUDA graphs, in {command}.",
    "kernel-resources": "A newer version of the program, or other options, in {command}.",
    "quantization": "Another file of the model, in {command}.",
    "quantization-method": "Another file of the model, or another option, in {command}.",
    "no-tokenizer": "Is the model that {command} names whole?",
    "illegal-instruction": "A build of the program for this processor, in {command}: lscpu shows its flags.",
    "network": "What {command} asked for there must be here before it starts, or be left out.",
    "no-program": "See {command}.",
    "gated": "It must be here before it starts, fetched by somebody who may: {command} names it.",
    "not-fetched": "What {command} names must be here before it starts.",
    "no-kv-cache": "More of each card, a smaller context or a smaller model, by {command}.",
    "shapes-by-cards": "Fewer cards, or whole layers for each, by an option in {command}.",
    "duplicate-gpu": "One card for each of its processes, in {command}: nvidia-smi -L",
    "old-system": "A build of the program for this system, in {command}, or a newer Debian.",
    "no-kernel-image": "A build of the program for this card: nvidia-smi --query-gpu=name,compute_cap --format=csv",
    "unsupported-model": "A newer version of the program, or another file of the model, in {command}.",
    "weights": "A newer version of the program, or another file of the model, in {command}.",
    "unloadable": "A newer version of the program, or another file of the model, in {command}.",
    "damaged-file": "The lines before it say which file: a setting of {command}, or one that it was fetched with.",
    "package": "{command} runs an interpreter that has it not: name the one of its venv, by its path, or install it there.",
    "buffers": "Less of it on the card, by {command}: fewer layers (--n-gpu-layers), a smaller context. nvidia-smi shows who else is.",
    "peer-access": "An option of the program that keeps the cards from reaching each other's memory, in {command}.",
    "no-module": "{command} runs an interpreter that has it not: name the one of its venv, by its path, or install it there.",
    "broken-engine": "Install the program in {command} anew.",
    "driver-too-old": "A newer NVIDIA driver, or a build of the program for an older CUDA, in {command}.",
    "card-too-old": "Another file of the model, or other options, in {command}.",
    "port-taken": "One of the two must listen elsewhere: `port` and {command} name the same.",
}


def _kv_space(case: Case, message: Message) -> Advice:
    free, wanted = error_figure(message.figures, "free"), error_figure(message.figures, "wanted")
    less = str(max(1, int(free * 0.7)))
    change = SettingChange(case.path("env.VLLM_CPU_KVCACHE_SPACE"), f"{wanted:g}", less, f"{free:g} GiB of RAM were free")
    return Advice((change,) if float(less) < wanted else ())


def _longer_than_model(case: Case, message: Message) -> Advice:
    return Advice(
        (change_argument(case, "max-model-len", str(int(error_figure(message.figures, "length"))), "what the model was made for"),)
    )


def _port(case: Case, message: Message) -> Advice:
    own, port = url_port(case.run.start.health), wanted_port(message.figures, case.run.start.health)
    change = SettingChange(case.path("port"), str(own), str(own + 1 if own < 65535 else own - 1), "if both are to run")
    return Advice((change,) if port == own else (), f"ss -ltnp 'sport = :{port}' says which.")


def _privileged_port(case: Case, _message: Message) -> Advice:
    own = url_port(case.run.start.health)
    return Advice((SettingChange(case.path("port"), str(own), "8000", "a port that needs no power"),) if own < 1024 else ())


def _address(case: Case, _message: Message) -> Advice:
    return Advice(hint=f"`ip -brief address` lists those that are; {case.path('host')} says where it is to listen.")


def _not_fetched(case: Case, message: Message) -> Advice:
    other = message.figures.get("what", "")
    if other and other not in case.arg("model"):
        hint = f"`vllm-safe fetch` brings the model alone: fetch {other} into a folder, and name its path in {case.path('args')}"
        return Advice(hint=f"{hint} (a draft model, a tokenizer, an adapter).")
    return _model(case, message)


def _model(case: Case, _message: Message) -> Advice:
    return Advice(hint=f"Is models.{case.name}.model right? Then: vllm-safe fetch {case.name}")


def _gated(case: Case, _message: Message) -> Advice:
    change = SettingChange("engine.hub_token_file", "", "/etc/vllm-safe/hub-token", "a file that only root reads, with a token of the hub")
    return Advice((change,), f"Accept the model's licence on its page on the hub; then: vllm-safe fetch {case.name}")


def _damaged(case: Case, _message: Message) -> Advice:
    return Advice(hint=f"vllm-safe fetch {case.name}   brings what is missing, and a file of Git LFS in place of its pointer.")


def _remote_code(case: Case, _message: Message) -> Advice:
    return Advice(
        (change_argument(case, "trust-remote-code", "true", "runs Python out of the model's folder: only if you trust who made it"),)
    )


def _nvcc(case: Case, _message: Message) -> Advice:
    changes = (
        change_variable(case, "VLLM_USE_FLASHINFER_SAMPLER", '"0"', "vLLM's own sampler, which needs no nvcc (vllm issue 49497)"),
        change_variable(case, "VLLM_ALLREDUCE_USE_FLASHINFER", '"0"', "NCCL's all-reduce, which needs no nvcc"),
    )
    off = all(change.old == "0" for change in changes)
    return Advice(changes, "Another args.attention-backend (TRITON_ATTN, FLASH_ATTN) may compile nothing with nvcc." if off else "")


def _ninja(case: Case, message: Message) -> Advice:
    return Advice(_nvcc(case, message).changes, "Or: apt install ninja-build; it must be on the PATH of the model (env.PATH).")


def _compiler(case: Case, _message: Message) -> Advice:
    change = change_argument(case, "enforce-eager", "true", "less is compiled, and it is slower")
    return Advice((change,), "Better: apt install gcc g++ libc6-dev python3-dev")


# What vLLM itself says is to be set: "Re-run with --kv-cache-dtype bfloat16", "try --enforce-eager", "lower max_num_seqs to at most 95".
_SAYS = re.compile(
    r"\b(?i:with|use|try|set|pass|specify|add|example:) `?--(?P<option>[a-z][a-z0-9-]+)(?:(?P<sign>[ =])(?P<value>[\w.]+))?|"
    r"\b(?i:lower|reduce|increase|decrease|raise|set) `?(?P<field>\w+_\w+)`? to (?:be )?(?:at (?:most|least) )?"
    r"(?P<figure>[\d.]+|True|False)\b"
)
_NO_VALUE = {"to", "or", "and", "if", "when", "in", "for", "instead", "as", "is", "with", "flag", "option", "argument"}  # words that go on


def _wrong(case: Case, _message: Message) -> Advice:
    return Advice(hint=f"See models.{case.name}.args; vllm-safe show {case.name}")


# "LoRA rank 64 is greater than max_lora_rank 16", "max_num_batched_tokens (512) must be greater than or equal to max_num_seqs (1024)".
_TOO_SMALL = re.compile(
    r"\b(?P<wanted>\d+)\)? is (?:great|larg)er than (?:the )?`?(?P<upper>max_(?!model_len)\w+)`?(?: \(|=| )\d|"
    r"\b(?P<lower>max_(?!model_len)\w+)`? ?\(?=?\d+\)? (?:is smaller than|must be (?:greater|larger) than or equal to) "
    r"(?:the )?`?\w+`? ?\(?=?"
    r"(?P<least>\d+)"
)
_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # what max_lora_rank may be: vllm/config/lora.py:23


def _setting(case: Case, message: Message) -> Advice:
    hint = _wrong(case, message).hint
    if small := _TOO_SMALL.search(message.text):
        option, least = (small["upper"] or small["lower"]).replace("_", "-"), int(small["wanted"] or small["least"])
        if option == "max-lora-rank":
            least = next((rank for rank in _RANKS if rank >= least), least)
        return Advice((change_argument(case, option, str(least), "as much as it needs, by vLLM"),), hint)
    if not (says := _SAYS.search(message.text)):
        return Advice(hint=hint)
    option, value = says["option"] or says["field"].replace("_", "-"), (says["value"] or says["figure"] or "").rstrip(".")
    if says["sign"] != "=" and (not value or value in _NO_VALUE):
        value = "true"
    value = value.lower() if value in {"True", "False"} else value
    return Advice((change_argument(case, option, value, "what vLLM itself says"),), hint)


def _quantization(case: Case, _message: Message) -> Advice:
    if case.arg("quantization") != "unset":
        return Advice(hint=f"Leave out {case.path('args.quantization')}: the model's own files say which one they have.")
    return Advice(hint="Another engine.version may know it (vllm-safe install), or take another quantization of the model.")


def _threads(case: Case, _message: Message) -> Advice:
    old = case.limit("tasks_max")
    hint = "Fewer threads for each worker do as well: env.OMP_NUM_THREADS. Without a change it ends so again."
    if not old:
        return Advice(hint=f"limits.tasks_max of it, or the whole machine, has none left. {hint}")
    return Advice((SettingChange(case.path("limits.tasks_max"), str(old), str(2 * old), "threads count as processes do"),), hint)


def _overcommit(case: Case, _message: Message) -> Advice:
    hint = "Or: sysctl vm.overcommit_memory=1. It is no limit of the model's: limits.memory_max changes nothing."
    return Advice(more_swap(case), hint)


def _permission(case: Case, message: Message) -> Advice:
    path = error_path(message.figures) or "PATH"
    own = f"It may write below {paths.HOME} and {paths.CACHE} only: env.HOME, or the program's own variable ({case.path('env')})."
    return Advice(hint=f"namei -l {path}   shows who refuses it: chmod o+rx, or setfacl -m u:{paths.USER}:rx. {own}")


_CUDAS = re.compile(r"lib(?:cuda(?:rt|nn)|cu(?:blas|dnn|fft|pti|rand|sparse|solver|file)|nvrtc|nvJitLink|nccl|torch|c10|nvshmem)")


def _library(case: Case, message: Message) -> Advice:
    name = error_library(message.figures)
    if _CUDAS.match(name):
        if case.run.start.command:
            return Advice(
                hint=f"It is CUDA's, in the version of its number: another build of the program, or LD_LIBRARY_PATH ({case.path('env')})."
            )
        return Advice(hint="It is one of the engine's own: vllm-safe install --reinstall   builds it anew.")
    if name.startswith(("libcuda.so", "libnvidia")):
        return Advice(hint="It is the NVIDIA driver's: apt install libcuda1 (of the driver's version), then ldconfig.")
    return Advice(hint=f"apt-file search {name}   says which package has it.")


def _no_module(case: Case, _message: Message) -> Advice:
    return Advice(hint=f"vllm-safe install --reinstall   builds the engine anew. A package of your own is none of it: {case.path('args')}.")


ADVICE: Mapping[str, Adviser] = {
    **CARDS,
    "no-command": hint_of("See `command`: a path is safest, since the PATH of the unit is short (env.PATH)."),
    "wrong-machine": hint_of("dpkg --print-architecture shows this machine's; file PATH shows the program's."),
    "no-program": hint_of("See its `command`, or run: vllm-safe install"),
    "bad-argument": _wrong,
    "bad-setting": _setting,
    "longer-than-model": _longer_than_model,
    "gated": _gated,
    "remote-code": _remote_code,
    "not-fetched": _not_fetched,
    "no-model": _model,
    "no-tokenizer": _model,
    "damaged-model": _damaged,
    "unsupported-model": hint_of("Another engine.version may know it; vllm-safe install brings it."),
    "quantization-method": _quantization,
    "unloadable": hint_of("Another file of the model, or another engine.version."),
    "damaged-file": _damaged,
    "weights": hint_of("Another engine.version may know them (vllm-safe install), or another quantization of the model."),
    "no-nvcc": _nvcc,
    "nvcc-failed": _nvcc,
    "flashinfer-cards": _nvcc,
    "no-ninja": _ninja,
    "no-compiler": _compiler,
    "compile-cache": hint_of(
        f"runuser -u {paths.USER} -- rm -r {paths.CACHE}/vllm/torch_compile_cache   then start it again: it is made anew."
    ),
    "no-threads": _threads,
    "kv-space": _kv_space,
    "no-host-memory": _overcommit,
    "own-heap": hint_of("Node: env.NODE_OPTIONS: --max-old-space-size=MEGABYTES. It is not limits.memory_max."),
    "port-taken": _port,
    "no-address": _address,
    "locked": hint_of("lslocks shows who: an earlier process of it, or another service with the same folder?"),
    "disk-full": hint_of("df -h; du -xh --max-depth=2 /var | sort -h | tail"),
    "io-error": hint_of("journalctl -k -g 'I/O error'   shows which disk; smartctl -a of it. A disk that fails now fails again."),
    "card-too-old": _setting,
    "too-many-files": hint_of("The unit allows it 1048576 (LimitNOFILE=): something in it opens files and closes none."),
    "privileged-port": _privileged_port,
    "permission": _permission,
    "missing-library": _library,
    "no-file": hint_of("Is the path right, in `args`, `env` or `command`? namei -l PATH shows how far it goes."),
    "network": hint_of("It starts without a network: what it fetches must be there before (vllm-safe fetch)."),
    "illegal-instruction": hint_of(
        "lscpu shows the processor's flags: vLLM's CPU build needs AVX2 at least. If it has amx_tile: vllm-safe install --reinstall"
    ),
    "no-module": _no_module,
    "package": _no_module,
    "old-system": hint_of("An older engine.version, or a newer Debian: its wheels need a newer glibc than this one has."),
    "broken-engine": hint_of("vllm-safe install --reinstall   builds the engine anew; else another engine.version."),
}
