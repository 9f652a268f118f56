"""The errors of servers: each pattern matches a message of its source, and errors without a pattern are classified by the rule."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_safe.causes.cause import find_cause
from vllm_safe.causes.messages import PATTERNS, Message, classify_error, without_figures

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
LINES: dict[str, list[str]] = {
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
        "RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "box:93:512 [0] enqueue.cc:43 NCCL WARN Cuda failure 2 'out of memory'",
        "ggml_backend_cuda_buffer_type_alloc_buffer: allocating 16674.37 MiB on device 0: cudaMalloc failed: out of memory",
        "RuntimeError: Insufficient VRAM for model and cache",
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
        (
            "OSError: /srv/models/x does not appear to have a file named tokenizer.json. Checkout "
            "'https://huggingface.co//srv/models/x/tree/main'"
        ),
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
    "gpu-fault": [
        "torch.AcceleratorError: CUDA error: an illegal memory access was encountered",
        "RuntimeError: CUDA error: misaligned address",
        "CUDA error: unspecified launch failure",
        "RuntimeError: CUDA error: unknown error",
    ],
    "port-taken": [
        "OSError: [Errno 98] Address already in use",
        "Error: listen tcp :80: address already in use: another process is listening on it",
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
    "killed": [
        "(EngineCore pid=1) ERROR 11-23 22:10:48 [x.py:1] Worker proc VllmWorker-3 died unexpectedly (exit code: -9), shutting down",
        "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {'EngineCore': -9}",
        "RuntimeError: Rank 0 scheduler died during initialization (exit code: -9). If exit code is -9 (SIGKILL), a common cause is",
        "2024-03-06T17:53:31Z ERROR text_generation_launcher: Shard process was signaled to shutdown with signal 4 rank=0",
        "Error: llama runner process has terminated: signal: killed",
        "[2024-01-01 00:00:00 +0000] [1] [ERROR] Worker (pid:9) was sent SIGKILL! Perhaps out of memory?",
    ],
    "silent": [
        "Exception: WorkerProc initialization failed due to an exception in a background process. See stack trace for root cause.",
        "RuntimeError: Executor failed.",
    ],
    "engine-died": ["RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {'EngineCore_DP0': 1}"],
    "no-tokenizer": [
        "ValueError: Couldn't instantiate the backend tokenizer from one of:",
        "OSError: Can't load tokenizer for '/srv/models/x'. If you were trying to load it from",
    ],
    "quantization": [
        "RuntimeError: Quantization scheme is not supported for the current GPU. Min capability: 80. Current capability: 75.",
        "ValueError: The quantization method awq is not supported for the current GPU. Minimum capability: 75. Current capability: 70.",
    ],
    "quantization-method": [
        "ValueError: Unknown quantization method: foo. Must be one of ['awq', 'fp8'].",
        "ValueError: Quantization method specified in the model config (gptq) does not match the quantization method specified in the `x`",
        "ValueError: Unsupported quantization config: bits=3, sym=True",
    ],
    "weights": [
        "KeyError: 'model.layers.3.mlp.gate_up_proj.qweight'",
        "RuntimeError: Error(s) in loading state_dict for LlamaForCausalLM:",
        "ValueError: There is no module or parameter named 'lm_head' in Qwen2",
    ],
    "nvcc-failed": ["nvcc fatal   : Unsupported gpu architecture 'compute_120'", "RuntimeError: Error building extension 'sampling'"],
    "no-ninja": [
        "RuntimeError: Ninja is required to load C++ extensions",
        "FileNotFoundError: [Errno 2] No such file or directory: 'ninja'",
    ],
    "compile-cache": [
        (
            "RuntimeError: vLLM failed to compile the model. The most likely reason for this is that a previous "
            "compilation failed, leading to a corrupted compilation artifact."
        )
    ],
    "cache-blocks": ["ValueError: max_num_seqs (256) exceeds available Mamba cache blocks (95). Each decode sequence requires one"],
    "dtype": [
        (
            "ValueError: Bfloat16 is only supported on GPUs with compute capability of at least 8.0. Your Tesla "
            "T4 GPU has compute capability 7.5."
        )
    ],
    "shapes-by-cards": [
        "ValueError: The output size is not aligned with the quantized weight shape. This can be caused by too large tensor parallel size."
    ],
    "profiling-race": [
        "AssertionError: Error in memory profiling. Initial free memory 12.94 GiB, current free memory 20.17 GiB. This happens when"
    ],
    "gpu-busy": ["RuntimeError: CUDA error: CUDA-capable device(s) is/are busy or unavailable"],
    "pinned-memory": [
        "torch.AcceleratorError: CUDA error: OS call failed or operation not supported on this OS",
        "cudaHostAlloc failed: 1024 bytes",
    ],
    "peer-access": [
        "torch.AcceleratorError: CUDA error: peer access is not supported between these two devices",
        "Failed: Cuda error /workspace/csrc/custom_all_reduce.cuh:455 'invalid argument'",
        "RuntimeError: CUDA error: peer mapping resources exhausted",
    ],
    "no-kernel-image": [
        "torch.AcceleratorError: CUDA error: no kernel image is available for execution on the device",
        "RuntimeError: CUDA error: invalid device function",
        "ptxas fatal   : Value 'sm_120a' is not defined for option 'gpu-name'",
    ],
    "kernel-resources": [
        "triton.runtime.errors.OutOfResources: out of resource: shared memory, Required: 81920, Hardware limit: 65536. Reducing",
        "RuntimeError: CUDA error: too many resources requested for launch",
    ],
    "driver-too-old": [
        "RuntimeError: The NVIDIA driver on your system is too old (found version 12080). Please update",
        "CUDA driver version is insufficient for CUDA runtime version",
        "RuntimeError: CUDA error: the provided PTX was compiled with an unsupported toolchain.",
    ],
    "driver-mismatch": [
        "pynvml.NVMLError_LibRmVersionMismatch: RM has detected an NVML/RM version mismatch.",
        "Failed to initialize NVML: Driver/library version mismatch",
        "RuntimeError: CUDA error: forward compatibility was attempted on non supported HW",
        (
            "RuntimeError: Unexpected error from cudaGetDeviceCount(). Error 803: system has unsupported display "
            "driver / cuda driver combination"
        ),
    ],
    "fabric-manager": ["RuntimeError: CUDA error: system not yet initialized"],
    "mps": ["RuntimeError: CUDA error: MPS client failed to connect to the MPS control daemon or the MPS server"],
    "uvm": ["RuntimeError: CUDA unknown error - this may be due to an incorrectly set up environment, e.g. changing env variable"],
    "gpu-lost": ["pynvml.NVMLError_GpuIsLost: GPU is lost"],
    "device-ordinal": ["torch.AcceleratorError: CUDA error: invalid device ordinal"],
    "cuda-fork": [
        (
            "RuntimeError: Cannot re-initialize CUDA in forked subprocess. To use CUDA with multiprocessing, you "
            "must use the 'spawn' start method"
        )
    ],
    "ecc": ["RuntimeError: CUDA error: uncorrectable ECC error encountered"],
    "gpu-assert": ["RuntimeError: CUDA error: device-side assert triggered"],
    "duplicate-gpu": [
        "myhost:2292596:2292596 [0] init.cc:943 NCCL WARN Duplicate GPU detected : rank 0 and rank 1 both on CUDA device 53000"
    ],
    "no-threads": [
        "RuntimeError: can't start new thread",
        "libgomp: Thread creation failed: Resource temporarily unavailable",
        "runtime: failed to create new OS thread (have 9 already; errno=11)",
        (
            "thread 'main' panicked at 'failed to spawn thread: Os { code: 11, kind: WouldBlock, message: "
            '"Resource temporarily unavailable" }\''
        ),
    ],
    "locked": [
        "sqlite3.OperationalError: database is locked",
        "filelock._error.Timeout: The file lock '/var/cache/x.lock' could not be acquired.",
        "Error: IO error: While lock file: /srv/rag/LOCK: Resource temporarily unavailable",
        "OSError: Unable to lock file, errno = 11, error message = 'Resource temporarily unavailable'",
    ],
    "no-address": [
        "OSError: [Errno 99] Cannot assign requested address",
        "Error: listen tcp 192.0.2.7:11434: bind: cannot assign requested address",
    ],
    "buffers": ["graph_reserve: failed to allocate compute buffers", "error loading model: unable to allocate backend buffer"],
    "graph-capture": ["RuntimeError: CUDA error: operation not permitted when stream is capturing"],
    "cuda-refused": ["RuntimeError: CUDA error: operation not supported", "RuntimeError: CUDA error: invalid resource handle"],
    "flashinfer-cards": ["RuntimeError: FlashInfer requires GPUs with sm75 or higher"],
    "unloadable": ["llama_model_load: error loading model: error loading model hyperparameters: key not found in model: qwen3.block_count"],
    "damaged-file": [
        "json.decoder.JSONDecodeError: Expecting value: line 1 column 1 (char 0)",
        "tomllib.TOMLDecodeError: Invalid statement (at line 1, column 1)",
        "UnicodeDecodeError: 'utf-8' codec can't decode byte 0xf8 in position 0: invalid start byte",
    ],
    "package": [
        "ImportError: Please install bitsandbytes>=0.46.1 via `pip install bitsandbytes>=0.46.1` to use bitsandbytes quantizer.",
        "LlamaConverter requires the protobuf library but it was not found in your environment.",
    ],
    "wrong-machine": ["OSError: [Errno 8] Exec format error: '/opt/server'"],
    "own-heap": ["FATAL ERROR: Reached heap limit Allocation failed - JavaScript heap out of memory"],
    "too-many-files": ["OSError: [Errno 24] Too many open files: '/srv/models/x'"],
    "privileged-port": [
        "PermissionError: [Errno 13] error while attempting to bind on address ('127.0.0.1', 80): permission denied",
        "Error: listen tcp 127.0.0.1:80: bind: permission denied",
        "Error: listen EACCES: permission denied 127.0.0.1:80",
    ],
    "permission": [
        "PermissionError: [Errno 13] Permission denied: '/home/anna/config.json'",
        "Error: EACCES: permission denied, mkdir '/var/lib/x'",
        "OSError: [Errno 30] Read-only file system: '/etc/x'",
        "open /var/lib/x/key: permission denied",
    ],
    "no-file": [
        "FileNotFoundError: [Errno 2] No such file or directory: '/srv/prompts/chat.jinja'",
        "Error: ENOENT: no such file or directory, open '/srv/x.json'",
        "IsADirectoryError: [Errno 21] Is a directory: '/srv/x'",
        "panic: open /srv/x.yaml: no such file or directory",
    ],
    "io-error": ["OSError: [Errno 5] Input/output error: '/srv/models/m/model-00001.safetensors'"],
    "card-too-old": ["ValueError: type fp8e4nv not supported in this architecture. The supported fp8 dtypes are ('fp8e5')"],
    "no-command": ["/bin/sh: 1: exec: /opt/none: not found", "bash: line 1: llama-server: command not found"],
    "engine-timeout": ["TimeoutError: Timed out waiting for engine core processes to start"],
    "network": ["socket.gaierror: [Errno -3] Temporary failure in name resolution", "Error: getaddrinfo ENOTFOUND huggingface.co"],
    "no-module": ["ModuleNotFoundError: No module named 'vllm'", "Error: Cannot find module 'express'"],
    "old-system": ["ImportError: /lib/x86_64-linux-gnu/libc.so.6: version `GLIBC_2.38' not found (required by /x/_C.abi3.so)"],
    "broken-engine": [
        "ImportError: cannot import name 'LogitsWarper' from 'transformers.generation'",
        "ImportError: /x/_C.abi3.so: undefined symbol: _ZN3c104cuda9SetDeviceEab",
    ],
}


@pytest.mark.parametrize(("kind", "line"), [(kind, line) for kind, lines in LINES.items() for line in lines])
def test_each_wording_is_told_apart(kind: str, line: str) -> None:
    """A line among harmless ones matches its own row and no other."""
    message = _find("INFO 11-23 22:10:40 [launcher.py:380] vLLM API server version 0.32.0", line, "and so on")
    assert message is not None
    assert message.kind == kind


def test_each_row_has_an_example() -> None:
    """No pattern is without an example."""
    assert set(LINES) == {pattern.kind or pattern.code for pattern in PATTERNS}


@pytest.mark.parametrize(
    ("line", "figures"),
    [
        (KV, {"wanted": "32768", "needed": "10.0", "free": "4.56", "length": "14928"}),
        (TAKEN, {"device": "cuda:1 ", "free": "9.81", "total": "11.76", "share": "0.92", "wanted": "10.82"}),
        (CUDA, {"wanted": "224.00 MiB", "device": "0", "total": "11.53", "free": "187.75 MiB"}),
        (LONGER, {"wanted": "99999", "length": "2048"}),
        (WATCHDOG, {"operation": "ALLREDUCE", "allowed": "600000"}),
        ("Error: listen EADDRINUSE: address already in use :::5678", {"end": "5678"}),
        ("PermissionError: [Errno 13] Permission denied: '/home/anna/x'", {"path": "/home/anna/x"}),
    ],
)
def test_figures_are_read(line: str, figures: dict[str, str]) -> None:
    """Suggestions are computed from these figures."""
    message = _find(line)
    assert message is not None
    assert message.figures == figures


@pytest.mark.parametrize(
    ("line", "never"),
    [
        ("ValueError: it is Monday", True),
        ("acme.errors.ModelConfigError: no", True),
        ("pydantic_core._pydantic_core.ValidationError: 1 validation error", True),
        ("AssertionError", True),
        ("jinja2.exceptions.TemplateSyntaxError: unexpected '}'", True),
        ("RuntimeError: FlexAttention does not work with this: block size 7 is not supported", True),
        ("RuntimeError: this kernel does not support current device sm_120", True),
        ("torch._dynamo.exc.BackendCompilerFailed: backend='inductor' raised:\nValueError: it is Monday", True),
        ('zmq.error.ZMQError: ipc path "/srv/temporary/x" is longer than 107 characters', True),
        ("zmq.error.Again: Resource temporarily unavailable", False),
        ("RuntimeError: The size of tensor a (4) must match the size of tensor b (5)", True),
        ("ImportError: /x/libc10.so: cannot allocate memory in static TLS block", True),
        ("RuntimeError: it is Monday", False),
        ("RuntimeError: gloo: invalid peer", False),
        ("ConnectionRefusedError: [Errno 111] refused", False),
        ("TimeoutError: 30 s", False),
        ("AssertionError: the store is temporarily unavailable", False),
        ("zmq.error.ZMQError: Operation cannot be accomplished in current state", False),
        ("panic: runtime error: index out of range", False),
        ("it is Monday", False),
    ],
)
def test_errors_that_no_pattern_knows_go_by_their_class(line: str, never: bool) -> None:  # noqa: FBT001 - one of a pair
    """Python's errors of settings, values, types, imports and files are final; those of resources that may become free again are not."""
    message = classify_error(line)
    assert (message.code, message.never_can_work) == ("", never)


def test_the_same_error_is_the_same_whatever_figures_are_in_it() -> None:
    """The figures are process ids, times, addresses and byte counts."""
    first = without_figures("RuntimeError: worker 4711 at 0x7f12: 3.2 GiB of 12:04:31, 10.0.0.1:29500\nmore 1")
    assert first == without_figures("RuntimeError: worker 815 at 0x8: 180 MiB of 09:59:00, 10.0.0.2:1\nmore 2")
    assert first != without_figures("RuntimeError: the driver at 0x7f12: 3.2 GiB of 12:04:31, 10.0.0.1:29500")


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
    """Requests to a model may quote errors."""
    assert _find(line) is None


def test_nothing_was_printed() -> None:
    """Without a line there is no message."""
    assert _find() is None


@given(st.lists(st.text(), max_size=5))
def test_any_text_is_read(lines: list[str]) -> None:
    """A server may print anything."""
    _find(*lines)


def test_long_lines_take_no_time() -> None:
    """Only the beginning of each line is searched: here a megabyte without a line end, made to be slow to match."""
    begun = time.process_time()
    _find(*["error " * 200_000, "a " * 500_000, "[" * 100_000, "(" * 10_000 + "pid=1", "/x" * 50_000 + ": permission denied"] * 4)
    assert time.process_time() - begun < 5


def _find(*lines: str) -> Message | None:
    return find_cause((), lines, served=False)
