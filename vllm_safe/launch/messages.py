"""What servers print when they cannot go on: one table, which the main process asks whether to try again, and `why` for the cause.

A pattern must match a line from its beginning, after what logging puts before it, so that a prompt or an answer that quotes an error is
none. "vllm" is vLLM 0.32.0, "torch", "triton", "transformers" and "huggingface_hub" what its lock names; their files say these words.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

NEVER, MAYBE = True, False  # can a second start work?
_LONGEST = 4000  # characters of a line that are looked at: a server may print a megabyte without an end


class Pattern(NamedTuple):
    """A row. never_can_work: started again as it is, the server would say the same; only somebody's hand can change it."""

    code: str
    regex: str
    never_can_work: bool
    source: str


class Message(NamedTuple):
    """A line that says what is wrong, and the figures in it by their names: length, free, total, wanted, gpus, ..."""

    code: str
    never_can_work: bool
    line: str
    figures: Mapping[str, str]


# As vLLM writes it: "(EngineCore pid=71) ERROR 11-23 22:10:48 [core.py:1512] "; torch: "[rank0]:[E1123 22:10:48.71 Some.cpp:607] [Rank 0]";
# uvicorn: "ERROR:    "; and the "| " of a traceback in a traceback.
_BEFORE = re.compile(
    r"(?:\((?:[\w.:-]+ )?pid=\d+[^)]*\)|(?:DEBUG|INFO|WARNING|ERROR|CRITICAL)\b[\d :.-]*(?:\[[\w.]+:\d+\])?|"
    r"\[[\w ]*[Rr]ank ?\d+\]:?|\[[EWF]\d* [\w:. ]*\]|\[PG [^\]]*\]|[|+ ]+)\s*"
)
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_ERROR = r"(?:[\w.]+(?:Error|Exception|Compiler): |Value error, ){0,3}"  # the last line of a traceback, or of pydantic's
_ANY_ERROR = r"(?:.{0,200}?\b(?i:\w*error|exception|errno|fatal|fail\w*|cannot|could ?n.t|unable)\b.{0,200}?)"  # other servers' words

# What is specific stands before what is general: the first pattern that is found decides, and in the lines its last match.
PATTERNS: tuple[Pattern, ...] = (
    Pattern("no-program", r"vllm-safe: error: cannot run (?P<program>.+?): ", NEVER, "vllm_safe/launch/server.py"),
    Pattern(
        "bad-argument",
        r"(?:(?:[\w.-]+ )*[\w.-]+: )?error: (?P<what>(?:unrecognized|argument|invalid|unknown|ambiguous|the following|one of|expected) .+)",
        NEVER,
        "argparse; vllm/utils/argparse_utils.py",
    ),
    Pattern(
        "kv-cache-too-small",
        _ERROR + r"To serve at least one request with the model's max seq len \((?P<wanted>\d+)\), \((?P<needed>[\d.]+) GiB KV "
        r"cache is needed, which is larger than the available KV cache memory \((?P<free>[\d.]+) GiB\)"
        r"(?:.*estimated maximum model length is (?P<length>\d+))?",
        NEVER,
        "vllm/v1/core/kv_cache_utils.py:1030",
    ),
    Pattern("no-kv-cache", _ERROR + r"No available memory for the cache blocks", NEVER, "vllm/v1/core/kv_cache_utils.py:1011"),
    Pattern(
        "longer-than-model",
        _ERROR + r"User-specified max_model_len \((?P<wanted>\d+)\) is greater than the derived max_model_len \(\w+=(?P<length>[\d.]+)",
        NEVER,
        "vllm/config/model.py:2646",
    ),
    Pattern(
        "gpu-taken",
        _ERROR + r"Free memory on device (?P<device>\S* ?)\((?P<free>[\d.]+)/(?P<total>[\d.]+) GiB\) on startup is less than "
        r".{0,120}?\((?P<share>[\d.]+), (?P<wanted>[\d.]+) GiB",
        MAYBE,  # whoever has the card may give it back
        "vllm/v1/worker/utils.py:763",
    ),
    Pattern(
        "cuda-memory",
        _ERROR + r"CUDA (?:error: )?out of memory(?:\. Tried to allocate (?P<wanted>[\d.]+ [KMGT]iB)\. GPU (?P<device>\d+) has a total "
        r"capac\w+ of (?P<total>[\d.]+) GiB of which (?P<free>[\d.]+ [KMGT]?i?B|\d+ bytes) is free)?",
        MAYBE,
        "torch: CUDACachingAllocator.cpp; vllm issues 12030, 16343",
    ),
    Pattern(
        "kv-space",
        _ERROR + r"Available memory on node \S+ \((?P<free>[\d.]+)/(?P<total>[\d.]+) GiB\) on kv cache allocation is less than "
        r"requested memory for kv \((?P<wanted>[\d.]+)",
        MAYBE,
        "vllm/v1/worker/cpu_worker.py:218",
    ),
    Pattern(
        "shm-full",
        _ERROR + r"Insufficient space in /dev/shm for .*?: (?P<wanted>\d+) MiB required, (?P<free>\d+) MiB free",
        MAYBE,
        "vllm/distributed/device_communicators/shm_broadcast.py:253",
    ),
    Pattern(
        "too-few-gpus",
        _ERROR + r"World size \((?P<wanted>\d+)\) is larger than the number of available GPUs \((?P<gpus>\d+)\)",
        NEVER,
        "vllm/config/parallel.py:1053",
    ),
    Pattern(
        "heads",
        _ERROR + r"Total number of attention heads \((?P<heads>\d+)\) must be divisible by tensor parallel size \((?P<wanted>\d+)\)",
        NEVER,
        "vllm/config/model.py:1548",
    ),
    Pattern(
        "gated",
        _ERROR + r"(?:You are trying to access a gated repo|.{0,300}Cannot access gated repo|\S+ is a gated repository)",
        NEVER,
        "transformers/utils/hub.py:611, 708; huggingface_hub/utils/_http.py:890",
    ),
    Pattern(
        "remote-code",
        _ERROR + r".{0,300}(?:Please pass the argument|Please set the option|consider setting) `trust_remote_code=True`",
        NEVER,
        "transformers/dynamic_module_utils.py:704, 777; vllm/transformers_utils/config.py:411",
    ),
    Pattern(
        "not-fetched",
        _ERROR + r"(?:We couldn't connect to '[^']*' to load the files|Cannot find the requested files in the disk cache and outgoing|"
        r"Cannot reach \S+: offline mode is enabled)",
        NEVER,
        "transformers/utils/hub.py:621; huggingface_hub/errors.py:478",
    ),
    Pattern(
        "no-model",
        _ERROR + r"(?:Invalid repository ID or local directory specified:|\S+ is not a local folder and is not a valid model|"
        r"Cannot find any (?:safetensors )?model weights with|\S+ does not appear to have a file named (?P<file>\S+)\. )",
        NEVER,
        "vllm/transformers_utils/config.py:849; vllm/model_executor/model_loader/default_loader.py:260; transformers/utils/hub.py:471, 570",
    ),
    Pattern(
        "damaged-model",
        r"(?:[\w.]+\.)?SafetensorError: |" + _ERROR + r"(?:Error while deserializing header|header too (?:large|small))",
        NEVER,
        "safetensors: safetensors_rust.SafetensorError",
    ),
    Pattern(
        "unsupported-model",
        _ERROR + r"(?:Model architectures? .{1,300} (?:are not supported for now|failed to be inspected|is not supported in-tree)|"
        r"The quantization method \S+ is not supported for the current GPU|Unknown quantization method:)",
        NEVER,
        "vllm/model_executor/models/registry.py:1182, 1206; vllm/config/vllm.py:903; vllm/config/model.py:1454",
    ),
    Pattern(
        "no-nvcc",
        _ERROR + r"(?:Could not find nvcc|nvcc not found at|\[Errno 2\] No such file or directory: '(?:[\w./-]*/)?nvcc'|"
        r".{0,40}\bnvcc: (?:command )?not found)",
        NEVER,
        "flashinfer/jit/cpp_ext.py; torch/utils/cpp_extension.py:628; vllm issues 49497, 21960",
    ),
    Pattern(
        "no-compiler",
        _ERROR + r"(?:Failed to find C compiler|No working C\+\+ compiler found|Compiler: \S+ is not found|"
        r".{0,80}\b(?:gcc|g\+\+|cc|ninja): (?:command )?not found|.{0,200}fatal error: Python\.h: No such file)",
        NEVER,
        "triton/runtime/build.py:33; torch/_inductor/exc.py:88",
    ),
    Pattern(
        "nccl-timeout",
        r".{0,200}Watchdog caught collective operation timeout: WorkNCCL\(.*?OpType=(?P<operation>\w+).*?Timeout\(ms\)=(?P<allowed>\d+)|"
        + _ERROR
        + r".{0,200}(?:Timed out waiting \d+ms for (?:recv|send) operation|wait timeout after \d+ms)",
        MAYBE,
        "torch: ProcessGroupNCCL.cpp (vllm issues 5484, 6042), gloo",
    ),
    Pattern("step-timeout", _ERROR + r"RPC call to (?P<method>\w+) timed out", MAYBE, "vllm/v1/executor/multiproc_executor.py:442"),
    Pattern("nccl-error", _ERROR + r"NCCL error", MAYBE, "vllm/distributed/device_communicators/pynccl_wrapper.py:448"),
    Pattern(
        "no-gpu",
        _ERROR
        + r"(?:Failed to infer device type|No CUDA GPUs are available|Found no NVIDIA driver|.{0,80}driver on your system is too old)",
        MAYBE,  # a driver that is loaded late
        "vllm/config/device.py:56; torch/cuda/__init__.py",
    ),
    Pattern(
        "gpu-fault",
        _ERROR + r".{0,40}CUDA error: (?P<what>[^\n]{1,200})|.{0,200}GPU has fallen off the bus",
        MAYBE,
        "torch: c10/cuda/CUDAException.cpp; NVIDIA: Xid 79",
    ),
    Pattern(
        "port-taken",
        r"(?:" + _ANY_ERROR + r")?(?:\[Errno 98\]|\(98: ?|EADDRINUSE|[Aa]ddress (?:is )?already in use).*|"
        r".*\bcouldn't bind (?:HTTP server )?socket.*",
        MAYBE,
        "errno EADDRINUSE; vllm/entrypoints/launchers/launcher.py:348",
    ),
    Pattern("disk-full", _ANY_ERROR + r"(?:No space left on device|os error 28|ENOSPC|Disk quota exceeded)", MAYBE, "errno ENOSPC, EDQUOT"),
    Pattern(
        "no-host-memory",
        _ERROR + r"(?:.{0,200}unable to mmap \d+ bytes|.{0,200}DefaultCPUAllocator: (?:can't allocate|not enough) memory|"
        r"(?:MemoryError|std::bad_alloc)|.{0,200}(?:\[Errno 12\] |os error 12.{0,20})Cannot allocate memory)",
        MAYBE,
        "torch: c10/core/impl/alloc_cpu.cpp, aten MapAllocator.cpp; vllm issue 9753",
    ),
    Pattern(
        "missing-library",
        _ERROR + r"(?P<file>lib[\w+.-]+\.so[.\d]*): cannot open shared object file",
        NEVER,
        "glibc: dl-load.c",
    ),
    Pattern("illegal-instruction", r"Fatal Python error: Illegal instruction", NEVER, "CPython: Modules/faulthandler.c"),
    Pattern(
        "bad-setting",
        r"Value error, (?P<what>.+?)(?: \[type=\w+.*)?$|"
        r"(?:[\w.]*)ValidationError: \d+ validation errors? for (?P<section>\w+)",
        NEVER,
        "pydantic, as vllm/config uses it",
    ),
    Pattern(
        "worker-died",
        r"Worker proc (?P<process>\S+) died unexpectedly \(exit code: (?P<status>-?\d+)\)|"
        r"(?:RuntimeError: )?Engine core process (?P<engine>\S+) died unexpectedly",
        MAYBE,
        "vllm/v1/executor/multiproc_executor.py:316; vllm/v1/utils.py:592",
    ),
    Pattern(
        "engine-died",
        _ERROR + r"(?:Engine core initialization failed|EngineCore encountered a(?:n issue| fatal error)|EngineCore failed to start|"
        r"WorkerProc (?:initialization )?failed)",
        MAYBE,
        "vllm/v1/engine/utils.py:1432; vllm/v1/engine/exceptions.py:16; vllm/v1/engine/core.py:1512",
    ),
)


def classify(lines: Iterable[str]) -> Message | None:
    """What the printed lines say is wrong, or None where they say nothing that is known."""
    bare = [bare_line(line) for line in lines]
    for pattern in PATTERNS:
        regex = re.compile(pattern.regex)
        for line in reversed(bare):
            if match := regex.match(line):
                figures = {name: value for name, value in match.groupdict().items() if value is not None}
                return Message(pattern.code, pattern.never_can_work, line, figures)
    return None


def bare_line(line: str) -> str:
    """A line without colours and without what logging puts before it."""
    line = _COLOUR.sub("", line[:_LONGEST]).strip()
    while match := _BEFORE.match(line):
        line = line[match.end() :]
    return line
