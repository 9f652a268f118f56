"""What servers print when they cannot go on: each row is found in the words of its source, and nowhere else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_safe.launch.messages import PATTERNS, bare_line, classify

KV = (
    "(EngineCore pid=71) ERROR 11-23 22:10:48 [core.py:1512] ValueError: To serve at least one request with the model's "
    "max seq len (32768), (10.0 GiB KV cache is needed, which is larger than the available KV cache memory (4.56 GiB). "
    "Based on the available memory, the "
    "estimated maximum model length is 14928. Try increasing `gpu_memory_utilization` (which also controls CPU memory on the CPU backend)"
)
WATCHDOG = (
    "[rank3]:[E1206 18:44:12.715298746 ProcessGroupNCCL.cpp:607] [Rank 3] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=1, "
    "OpType=ALLREDUCE, NumelIn=1, NumelOut=1, Timeout(ms)=600000) ran for 600061 milliseconds before timing out."
)
TAKEN = (
    "(Worker_TP1 pid=9) ERROR 11-23 22:10:48 [multiproc_executor.py:953] ValueError: Free memory on device cuda:1 (9.81/11.76 GiB) on "
    "startup is less than desired GPU memory utilization (0.92, 10.82 GiB). Decrease GPU memory utilization or reduce GPU memory used"
)
CUDA = (
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 224.00 MiB. GPU 0 has a total capacity of 11.53 GiB of which 187.75 MiB "
    "is free."
)
LONGER = (
    "  Value error, User-specified max_model_len (99999) is greater than the derived max_model_len (max_position_embeddings=2048 or "
    "model_max_length=None in model's config.json). To allow overriding this maximum, set the env var [type=value_error, input_value=A]"
)
LINES = {
    "no-program": ["vllm-safe: error: cannot run /opt/none: No such file or directory"],
    "bad-argument": [
        "vllm serve: error: unrecognized arguments: --swap-space",
        "api_server.py: error: argument --port: invalid int value: 'x'",
    ],
    "kv-cache-too-small": [KV],
    "no-kv-cache": ["ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization`"],
    "longer-than-model": [LONGER],
    "gpu-taken": [TAKEN],
    "cuda-memory": [
        CUDA,
        "RuntimeError: CUDA error: out of memory",
        "torch.cuda.OutOfMemoryError: CUDA out of memory. Tried to allocate 3 GiB",
    ],
    "kv-space": [
        "ValueError: Available memory on node 0 (0.51/1.93 GiB) on kv cache allocation is less than requested memory for kv (1.0 GiB)."
    ],
    "shm-full": ["RuntimeError: Insufficient space in /dev/shm for ring buffer: 240 MiB required, 64 MiB free. Increase /dev/shm"],
    "too-few-gpus": ["  Value error, World size (8) is larger than the number of available GPUs (2) in this node. If this is"],
    "heads": ["ValueError: Total number of attention heads (14) must be divisible by tensor parallel size (8)."],
    "gated": [
        "OSError: You are trying to access a gated repo.",
        "403 Client Error. Cannot access gated repo for url https://hub.example/x.",
    ],
    "remote-code": [
        "ValueError: a/b contains custom code. Please pass the argument `trust_remote_code=True` to allow custom code to be run."
    ],
    "not-fetched": ["OSError: We couldn't connect to 'https://huggingface.co' to load the files, and couldn't find them in the"],
    "no-model": [
        "  Value error, Invalid repository ID or local directory specified: '/srv/none'.",
        "RuntimeError: Cannot find any model weights with `/srv/models/empty`",
        "OSError: /srv/models/x does not appear to have a file named tokenizer.json. Checkout 'https://huggingface.co//srv/models/x/tree/main'",
    ],
    "damaged-model": ["safetensors_rust.SafetensorError: Error while deserializing header: incomplete metadata, file not fully covered"],
    "unsupported-model": [
        "ValueError: Model architectures ['FooForCausalLM'] are not supported for now. Supported architectures: dict_keys(["
    ],
    "no-nvcc": [
        "(Worker_TP1 pid=3534) ERROR 10-11 22:28:17 [multiproc_executor.py:694] RuntimeError: Could not find nvcc and default cuda_home=",
        "/bin/sh: 1: /usr/local/cuda/bin/nvcc: not found",
        "FileNotFoundError: [Errno 2] No such file or directory: 'nvcc'",
    ],
    "no-compiler": [
        "RuntimeError: Failed to find C compiler. Please specify via CC environment variable or set triton.knobs.build.impl.",
        "torch._inductor.exc.InductorError: InvalidCxxCompiler: No working C++ compiler found in torch._inductor.config.cpp.cxx",
        "/build/main.c:5:10: fatal error: Python.h: No such file or directory",
    ],
    "nccl-timeout": [WATCHDOG],
    "step-timeout": ["TimeoutError: RPC call to execute_model timed out."],
    "nccl-error": ["RuntimeError: NCCL error: unhandled system error (run with NCCL_DEBUG=INFO for details)"],
    "no-gpu": ["RuntimeError: Failed to infer device type, please set the environment", "RuntimeError: No CUDA GPUs are available"],
    "gpu-fault": ["torch.AcceleratorError: CUDA error: an illegal memory access was encountered"],
    "port-taken": [
        "OSError: [Errno 98] Address already in use",
        "nginx: [emerg] bind() to 0.0.0.0:80 failed (98: Address already in use)",
        "main: couldn't bind HTTP server socket, hostname: 127.0.0.1, port: 8001",
    ],
    "disk-full": [
        "OSError: [Errno 28] No space left on device: '/var/cache/vllm/x'",
        "write failed: No space left on device (os error 28)",
    ],
    "no-host-memory": [
        "RuntimeError: unable to mmap 4294967296 bytes from file </srv/m/a.safetensors>: Cannot allocate memory (12)",
        "RuntimeError: [enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried",
        "MemoryError",
    ],
    "missing-library": ["ImportError: libnuma.so.1: cannot open shared object file: No such file or directory"],
    "illegal-instruction": ["Fatal Python error: Illegal instruction"],
    "bad-setting": [
        "  Value error, max_num_seqs must be at least 1 [type=value_error, input_value=ArgsKwargs((), {}), input_type=ArgsKwargs]"
    ],
    "worker-died": [
        "(EngineCore pid=1) ERROR 11-23 22:10:48 [x.py:1] Worker proc VllmWorker-3 died unexpectedly (exit code: -9), shutting down"
    ],
    "engine-died": ["RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {'EngineCore_DP0': 1}"],
}


@pytest.mark.parametrize(("code", "line"), [(code, line) for code, lines in LINES.items() for line in lines])
def test_each_wording_is_told_apart(code: str, line: str) -> None:
    """A line, among harmless ones, has its own row and no other."""
    message = classify(["INFO 11-23 22:10:40 [launcher.py:380] vLLM API server version 0.32.0", line, "and so on"])
    assert message is not None
    assert message.code == code


def test_each_row_has_an_example() -> None:
    """No pattern is unproven."""
    assert list(LINES) == [pattern.code for pattern in PATTERNS]


@pytest.mark.parametrize(
    ("line", "figures"),
    [
        (KV, {"wanted": "32768", "needed": "10.0", "free": "4.56", "length": "14928"}),
        (TAKEN, {"device": "cuda:1 ", "free": "9.81", "total": "11.76", "share": "0.92", "wanted": "10.82"}),
        (CUDA, {"wanted": "224.00 MiB", "device": "0", "total": "11.53", "free": "187.75 MiB"}),
        (LONGER, {"wanted": "99999", "length": "2048"}),
        (WATCHDOG, {"operation": "ALLREDUCE", "allowed": "600000"}),
    ],
)
def test_figures_are_read(line: str, figures: dict[str, str]) -> None:
    """What a suggestion is computed from."""
    message = classify([line])
    assert message is not None
    assert message.figures == figures


def test_the_cause_goes_before_what_follows_from_it() -> None:
    """The engine's death is the end of each story; what it died of stands above."""
    message = classify([KV, *LINES["engine-died"]])
    assert message is not None
    assert (message.code, message.never_can_work) == ("kv-cache-too-small", True)


@pytest.mark.parametrize(
    "line",
    [
        'INFO 11-23 22:10:48 [logger.py:40] Received request 1: prompt: "why does torch say ValueError: CUDA out of memory?"',
        "INFO: what is a gated repo, and why is the address already in use",
        "I asked: Free memory on device",
        "",
    ],
)
def test_what_quotes_an_error_is_none(line: str) -> None:
    """People ask models about errors."""
    assert classify([line]) is None


def test_nothing_was_printed() -> None:
    """No line, no message."""
    assert classify([]) is None


def test_what_logging_adds_is_taken_off() -> None:
    """Prefixes and colours in any order."""
    assert bare_line("\x1b[31m(EngineCore pid=71) ERROR 11-23 22:10:48 [core.py:1512]   ValueError: x\x1b[0m") == "ValueError: x"
    assert bare_line("ERROR:    [Errno 98] x") == "[Errno 98] x"
    assert bare_line("  | | ValueError: y") == "ValueError: y"


@given(st.lists(st.text(), max_size=5))
def test_any_text_is_read(lines: list[str]) -> None:
    """A server may print anything."""
    classify(lines)


def test_long_lines_take_no_time() -> None:
    """A megabyte without a line's end, made to be slow to match: of each line only the beginning is looked at."""
    assert classify(["error " * 200_000, "a " * 500_000, "[" * 100_000] * 20) is None
