"""Advice on known errors: the setting to change, its value from the error's figures, and what else to do.

launch/end_sentence.py explains the errors, for the main process too.
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
    """Return the advice on an error. Only vLLM has options in `args`; another server has them in `command`."""
    advice = ADVICE[message.kind](case, message)
    if not case.run.start.command:
        return advice
    changes = tuple(change for change in advice.changes if not _VLLMS.search(change.path))
    return Advice(changes, _COMMAND.get(message.kind, advice.hint).format(command=case.path("command")))


_VLLMS = re.compile(r"^engine\.|\.args\.|\.env\.VLLM_|\.profile$|\.port$")  # settings that mean nothing to another server
# Hints for a server that is not vLLM.
_LESS_ON_CARD = "Put less on the GPU in {command}: fewer layers (--n-gpu-layers), a smaller context. nvidia-smi shows what else uses it."
_COMMAND = {
    "cuda-memory": _LESS_ON_CARD,
    "bad-argument": "See {command}.",
    "no-model": "Check that the path in {command} exists and that user vllm may read it: namei -l PATH",
    "damaged-model": "Fetch the file that {command} names again.",
    "gpu-fault": "journalctl -k -g NVRM   shows what the driver reported (Xid). If it reported nothing, the program is at fault.",
    "no-ninja": "apt install ninja-build; it must be on the PATH of the model (env.PATH).",
    "gpu-assert": "The lines before it name the check. The model is damaged, or the program has a fault: try a newer one in {command}.",
    "pinned-memory": "Pinned memory counts against limits.memory_max and cannot be swapped. Leave more RAM, or lock less in {command}.",
    "cuda-refused": "Use a newer version of the program, or other options, in {command}.",
    "graph-capture": "Disable CUDA graphs by an option of the program in {command}.",
    "kernel-resources": "Use a newer version of the program, or other options, in {command}.",
    "quantization": "Use another file of the model in {command}.",
    "quantization-method": "Use another file of the model, or another option, in {command}.",
    "no-tokenizer": "Check that the model that {command} names is complete.",
    "illegal-instruction": "Use a build of the program for this processor in {command}: lscpu shows its flags.",
    "network": "Fetch what {command} asked for before the start, or leave it out.",
    "no-program": "See {command}.",
    "gated": "Fetch what {command} names before the start, with an account that has access.",
    "not-fetched": "Fetch what {command} names before the start.",
    "no-kv-cache": "Use more memory of each GPU, a smaller context or a smaller model in {command}.",
    "shapes-by-cards": "Use fewer GPUs, or whole layers for each, by an option in {command}.",
    "duplicate-gpu": "Give each process its own GPU in {command}: nvidia-smi -L",
    "old-system": "Use a build of the program for this system in {command}, or a newer Debian.",
    "no-kernel-image": "Use a build of the program for this GPU: nvidia-smi --query-gpu=name,compute_cap --format=csv",
    "unsupported-model": "Use a newer version of the program, or another file of the model, in {command}.",
    "weights": "Use a newer version of the program, or another file of the model, in {command}.",
    "unloadable": "Use a newer version of the program, or another file of the model, in {command}.",
    "damaged-file": "The lines before it name the file: an option in {command}, or a file that was fetched with the model.",
    "package": "{command} runs an interpreter without it: name the interpreter of its venv by its path, or install the package there.",
    "buffers": _LESS_ON_CARD,
    "peer-access": "Disable peer access between the GPUs by an option of the program in {command}.",
    "no-module": "{command} runs an interpreter without it: name the interpreter of its venv by its path, or install the module there.",
    "broken-engine": "Reinstall the program in {command}.",
    "driver-too-old": "Install a newer NVIDIA driver, or use a build of the program for an older CUDA in {command}.",
    "card-too-old": "Use another file of the model, or other options, in {command}.",
    "port-taken": "One of the two must use another port: set `port` and {command} to the same one.",
}


def _kv_space(case: Case, message: Message) -> Advice:
    free, wanted = error_figure(message.figures, "free"), error_figure(message.figures, "wanted")
    less = str(max(1, int(free * 0.7)))
    change = SettingChange(case.path("env.VLLM_CPU_KVCACHE_SPACE"), f"{wanted:g}", less, f"{free:g} GiB of RAM were free")
    return Advice((change,) if float(less) < wanted else ())


def _longer_than_model(case: Case, message: Message) -> Advice:
    return Advice(
        (change_argument(case, "max-model-len", str(int(error_figure(message.figures, "length"))), "the context length of the model"),)
    )


def _port(case: Case, message: Message) -> Advice:
    own, port = url_port(case.run.start.health), wanted_port(message.figures, case.run.start.health)
    change = SettingChange(case.path("port"), str(own), str(own + 1 if own < 65535 else own - 1), "if both programs are to run")
    return Advice((change,) if port == own else (), f"ss -ltnp 'sport = :{port}' shows which program uses it.")


def _privileged_port(case: Case, _message: Message) -> Advice:
    own = url_port(case.run.start.health)
    return Advice((SettingChange(case.path("port"), str(own), "8000", "a port that needs no privilege"),) if own < 1024 else ())


def _address(case: Case, _message: Message) -> Advice:
    return Advice(hint=f"`ip -brief address` lists the addresses of this machine; {case.path('host')} sets the one to listen on.")


def _not_fetched(case: Case, message: Message) -> Advice:
    other = message.figures.get("what", "")
    if other and other not in case.arg("model"):
        hint = f"`vllm-safe fetch` fetches only the model itself: fetch {other} into a folder, and set its path in {case.path('args')}"
        return Advice(hint=f"{hint} (a draft model, a tokenizer, an adapter).")
    return _model(case, message)


def _model(case: Case, _message: Message) -> Advice:
    return Advice(hint=f"Check models.{case.name}.model, then run: vllm-safe fetch {case.name}")


def _gated(case: Case, _message: Message) -> Advice:
    change = SettingChange("engine.hub_token_file", "", "/etc/vllm-safe/hub-token", "a file with a token of the hub, readable only by root")
    return Advice((change,), f"Accept the model's licence on its page at the hub, then run: vllm-safe fetch {case.name}")


def _damaged(case: Case, _message: Message) -> Advice:
    return Advice(hint=f"vllm-safe fetch {case.name}   fetches missing files, and replaces Git LFS pointers by their files.")


def _remote_code(case: Case, _message: Message) -> Advice:
    return Advice(
        (change_argument(case, "trust-remote-code", "true", "runs Python code from the model's folder: only if you trust its author"),)
    )


def _nvcc(case: Case, _message: Message) -> Advice:
    changes = (
        change_variable(case, "VLLM_USE_FLASHINFER_SAMPLER", '"0"', "uses vLLM's own sampler, which needs no nvcc (vllm issue 49497)"),
        change_variable(case, "VLLM_ALLREDUCE_USE_FLASHINFER", '"0"', "uses NCCL's all-reduce, which needs no nvcc"),
    )
    off = all(change.old == "0" for change in changes)
    return Advice(changes, "Another args.attention-backend (TRITON_ATTN, FLASH_ATTN) may work without nvcc." if off else "")


def _ninja(case: Case, message: Message) -> Advice:
    return Advice(_nvcc(case, message).changes, "Or: apt install ninja-build; it must be on the PATH of the model (env.PATH).")


def _compiler(case: Case, _message: Message) -> Advice:
    change = change_argument(case, "enforce-eager", "true", "compiles less, and is slower")
    return Advice((change,), "Better: apt install gcc g++ libc6-dev python3-dev")


# Settings that vLLM itself suggests: "Re-run with --kv-cache-dtype bfloat16", "try --enforce-eager", "lower max_num_seqs to at most 95".
_SAYS = re.compile(
    r"\b(?i:with|use|try|set|pass|specify|add|example:) `?--(?P<option>[a-z][a-z0-9-]+)(?:(?P<sign>[ =])(?P<value>[\w.]+))?|"
    r"\b(?i:lower|reduce|increase|decrease|raise|set) `?(?P<field>\w+_\w+)`? to (?:be )?(?:at (?:most|least) )?"
    r"(?P<figure>[\d.]+|True|False)\b"
)
_NO_VALUE = {
    "to",
    "or",
    "and",
    "if",
    "when",
    "in",
    "for",
    "instead",
    "as",
    "is",
    "with",
    "flag",
    "option",
    "argument",
}  # words that continue the sentence: no values


def _wrong(case: Case, _message: Message) -> Advice:
    return Advice(hint=f"See models.{case.name}.args; vllm-safe show {case.name}")


# "LoRA rank 64 is greater than max_lora_rank 16", "max_num_batched_tokens (512) must be greater than or equal to max_num_seqs (1024)".
_TOO_SMALL = re.compile(
    r"\b(?P<wanted>\d+)\)? is (?:great|larg)er than (?:the )?`?(?P<upper>max_(?!model_len)\w+)`?(?: \(|=| )\d|"
    r"\b(?P<lower>max_(?!model_len)\w+)`? ?\(?=?\d+\)? (?:is smaller than|must be (?:greater|larger) than or equal to) "
    r"(?:the )?`?\w+`? ?\(?=?"
    r"(?P<least>\d+)"
)
_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # the values that max_lora_rank accepts: vllm/config/lora.py:23


def _setting(case: Case, message: Message) -> Advice:
    hint = _wrong(case, message).hint
    if small := _TOO_SMALL.search(message.text):
        option, least = (small["upper"] or small["lower"]).replace("_", "-"), int(small["wanted"] or small["least"])
        if option == "max-lora-rank":
            least = next((rank for rank in _RANKS if rank >= least), least)
        return Advice((change_argument(case, option, str(least), "as much as it needs, according to vLLM"),), hint)
    if not (says := _SAYS.search(message.text)):
        return Advice(hint=hint)
    option, value = says["option"] or says["field"].replace("_", "-"), (says["value"] or says["figure"] or "").rstrip(".")
    if says["sign"] != "=" and (not value or value in _NO_VALUE):
        value = "true"
    value = value.lower() if value in {"True", "False"} else value
    return Advice((change_argument(case, option, value, "suggested by vLLM itself"),), hint)


def _quantization(case: Case, _message: Message) -> Advice:
    if case.arg("quantization") != "unset":
        return Advice(hint=f"Remove {case.path('args.quantization')}: the model's own files name their quantization.")
    return Advice(hint="Another engine.version may support it (vllm-safe install); or use another quantization of the model.")


def _threads(case: Case, _message: Message) -> Advice:
    old = case.limit("tasks_max")
    hint = "Fewer threads per worker help as well: env.OMP_NUM_THREADS. Without a change it ends in the same way again."
    if not old:
        return Advice(hint=f"Its limits.tasks_max, or the limit of the whole machine, is reached. {hint}")
    return Advice((SettingChange(case.path("limits.tasks_max"), str(old), str(2 * old), "threads count like processes"),), hint)


def _overcommit(case: Case, _message: Message) -> Advice:
    hint = "Or set sysctl vm.overcommit_memory=1. The model's own limit was not reached, so limits.memory_max would not help."
    return Advice(more_swap(case), hint)


def _permission(case: Case, message: Message) -> Advice:
    path = error_path(message.figures) or "PATH"
    own = f"A model may write only below {paths.HOME} and {paths.CACHE}: set env.HOME, or the program's own variable ({case.path('env')})."
    return Advice(hint=f"namei -l {path}   shows which folder denies access: chmod o+rx, or setfacl -m u:{paths.USER}:rx. {own}")


_CUDAS = re.compile(r"lib(?:cuda(?:rt|nn)|cu(?:blas|dnn|fft|pti|rand|sparse|solver|file)|nvrtc|nvJitLink|nccl|torch|c10|nvshmem)")


def _library(case: Case, message: Message) -> Advice:
    name = error_library(message.figures)
    if _CUDAS.match(name):
        if case.run.start.command:
            return Advice(
                hint="The library belongs to the CUDA version in its name: use another build of the program, "
                f"or set LD_LIBRARY_PATH ({case.path('env')})."
            )
        return Advice(hint="The library belongs to the engine: vllm-safe install --reinstall   rebuilds it.")
    if name.startswith(("libcuda.so", "libnvidia")):
        return Advice(hint="The library belongs to the NVIDIA driver: apt install libcuda1 (in the driver's version), then ldconfig.")
    return Advice(hint=f"apt-file search {name}   shows which package contains it.")


def _no_module(case: Case, _message: Message) -> Advice:
    return Advice(
        hint=f"vllm-safe install --reinstall   rebuilds the engine. It contains no packages of your own: see {case.path('args')}."
    )


ADVICE: Mapping[str, Adviser] = {
    **CARDS,
    "no-command": hint_of("See `command`: an absolute path is safest, since the PATH of the unit is short (env.PATH)."),
    "wrong-machine": hint_of("dpkg --print-architecture shows the architecture of this machine; file PATH shows that of the program."),
    "no-program": hint_of("Check `command`, or run: vllm-safe install"),
    "bad-argument": _wrong,
    "bad-setting": _setting,
    "longer-than-model": _longer_than_model,
    "gated": _gated,
    "remote-code": _remote_code,
    "not-fetched": _not_fetched,
    "no-model": _model,
    "no-tokenizer": _model,
    "damaged-model": _damaged,
    "unsupported-model": hint_of("Another engine.version may support it: vllm-safe install."),
    "quantization-method": _quantization,
    "unloadable": hint_of("Use another file of the model, or another engine.version."),
    "damaged-file": _damaged,
    "weights": hint_of("Use another engine.version (vllm-safe install), or another quantization of the model."),
    "no-nvcc": _nvcc,
    "nvcc-failed": _nvcc,
    "flashinfer-cards": _nvcc,
    "no-ninja": _ninja,
    "no-compiler": _compiler,
    "compile-cache": hint_of(
        f"runuser -u {paths.USER} -- rm -r {paths.CACHE}/vllm/torch_compile_cache   and start the model again, which rebuilds the cache."
    ),
    "no-threads": _threads,
    "kv-space": _kv_space,
    "no-host-memory": _overcommit,
    "own-heap": hint_of("For Node, set env.NODE_OPTIONS: --max-old-space-size=MEGABYTES. limits.memory_max was not reached."),
    "port-taken": _port,
    "no-address": _address,
    "locked": hint_of(
        "lslocks shows which process holds the lock, such as an earlier process of the model or another service with the same folder."
    ),
    "disk-full": hint_of("Find what uses the space: df -h; du -xh --max-depth=2 /var | sort -h | tail"),
    "io-error": hint_of("journalctl -k -g 'I/O error'   shows which disk; check it with smartctl -a. A failing disk will fail again."),
    "card-too-old": _setting,
    "too-many-files": hint_of("The unit allows 1048576 open files (LimitNOFILE=): the program leaks file descriptors."),
    "privileged-port": _privileged_port,
    "permission": _permission,
    "missing-library": _library,
    "no-file": hint_of("Check the path in `args`, `env` or `command`: namei -l PATH shows which part is missing."),
    "network": hint_of("The model starts without a network: fetch what it needs before (vllm-safe fetch)."),
    "illegal-instruction": hint_of(
        "lscpu shows the processor's flags: vLLM's CPU build needs at least AVX2. With amx_tile, run vllm-safe install --reinstall"
    ),
    "no-module": _no_module,
    "package": _no_module,
    "old-system": hint_of("Use an older engine.version or a newer Debian: the engine's wheels need a newer glibc than this system has."),
    "broken-engine": hint_of("vllm-safe install --reinstall   rebuilds the engine; if that does not help, use another engine.version."),
}
