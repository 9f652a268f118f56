"""Patterns for errors of CUDA, its libraries and NCCL, as the runtime, the driver API, torch, vLLM and llama.cpp print them.

The messages of CUDA are those of cudaGetErrorString and cuGetErrorName (CUDA 13.0, driver_types.h and cuda.h). The messages alone do not
tell a fault of the GPU from a fault of the program: the kernel's log lines decide, where there are any.
"""

from __future__ import annotations

from vllm_safe.causes.patterns import MAYBE, NEVER, Pattern

CARDS: tuple[Pattern, ...] = (
    Pattern(
        "gpu-taken",
        r"Free memory on device (?P<device>\S* ?)\((?P<free>[\d.]+)/(?P<total>[\d.]+) GiB\) on startup is less than "
        r".{0,120}?\((?P<share>[\d.]+), (?P<wanted>[\d.]+) GiB",
        MAYBE,  # the other program may release the GPU
        "vllm/v1/worker/utils.py:763",
    ),
    Pattern(
        "gpu-taken",
        r"Error in memory profiling\. Initial free memory (?P<before>[\d.]+ \w+), current free memory (?P<after>[\d.]+ \w+)",
        MAYBE,
        "vllm/v1/worker/gpu_worker.py; vllm issue 56830",
        "profiling-race",
    ),
    Pattern(
        "gpu-taken",
        r"CUDA-capable device\(s\) is/are busy or unavailable|cudaErrorDevicesUnavailable|exclusive process",
        MAYBE,
        "cudaErrorDevicesUnavailable",
        "gpu-busy",
    ),
    Pattern(
        "cuda-memory",
        r"(?:CUDA|HIP) (?:error: )?out of memory(?:\. Tried to allocate (?P<wanted>[\d.]+ [KMGT]iB)\. GPU (?P<device>\d+) has a total "
        r"capac\w+ of (?P<total>[\d.]+) GiB of which (?P<free>[\d.]+ [KMGT]?i?B|\d+ bytes) is free)?|cudaErrorMemoryAllocation|"
        r"CUDA_ERROR_OUT_OF_MEMORY|(?:CUBLAS|CUDNN|CUSPARSE|CUSOLVER)_STATUS_(?:ALLOC_FAILED|NOT_INITIALIZED)|"
        r"Cuda failure(?: \d+)? '?out of memory|(?:cudaMalloc\w*|hipMalloc) failed: out of memory|"
        r"^(?:[\w.]+\.)?OutOfMemoryError\b(?!: CUDA out of memory)|"
        r"(?:failed|unable) to allocate (?:\S+ )?(?:CUDA|ROCm|Vulkan)\d* ?(?:buffer|memory|KV)|ErrorOutOfDeviceMemory|"
        r"allocating (?P<size>[\d.]+ \wi?B) on device \d+: cudaMalloc failed",
        MAYBE,
        "torch: CUDACachingAllocator.cpp, CUDABlas.cpp; NCCL: alloc.h; llama.cpp: ggml-cuda.cu; vllm issues 12030, 16343",
    ),
    Pattern(
        "pinned-memory",
        r"OS call failed or operation not supported on this OS|cudaErrorOperatingSystem|CUDA_ERROR_OPERATING_SYSTEM|cudaHostAlloc|"
        r"cudaMallocHost|cudaHostRegister|allocate \w+_Host buffer|cudaErrorHostMemory|"
        r"(?:allocate|register|get) .{0,40}(?:pinned|page-locked) ",
        MAYBE,
        "cudaErrorOperatingSystem; vllm issue 43473",
    ),
    Pattern(
        "peer-access",
        r"peer (?:access|mapping)|cudaErrorPeerAccess|cudaErrorTooManyPeers|[Cc]uda error \S*custom_all_reduce|custom_all_reduce\.cuh",
        NEVER,
        "cudaErrorPeerAccessUnsupported; vllm: csrc/custom_all_reduce.cuh; vllm issues 49101, 44003, 9046",
    ),
    Pattern(
        "no-kernel-image",
        r"no kernel image is available|invalid device function|device kernel image is invalid|cudaErrorNoKernelImageForDevice|"
        r"CUDA_ERROR_NO_BINARY_FOR_GPU|is not compatible with the current PyTorch installation|CUBLAS_STATUS_ARCH_MISMATCH|"
        r"CUDNN_STATUS_ARCH_MISMATCH|[Uu]nsupported gpu architecture|Value 'sm_\w+' is not defined|was built without support for sm_",
        NEVER,
        "cudaErrorNoKernelImageForDevice, cudaErrorInvalidDeviceFunction; vllm issues 19185, 18995",
    ),
    Pattern(
        "kernel-resources",
        r"OutOfResources(?!: out of resource)|out of resource: (?P<what>[\w ]+), Required: (?P<wanted>\d+), Hardware limit: (?P<limit>\d+)|"
        r"too many resources requested for launch|CUDA error: invalid configuration argument|cudaErrorLaunchOutOfResources",
        NEVER,
        "triton/runtime/errors.py; cudaErrorLaunchOutOfResources; vllm issue 36802",
    ),
    Pattern(
        "no-gpu",
        r"driver (?:version )?(?:on your system )?is too old(?: \(found version (?P<found>\d+)\))?|driver version is insufficient|"
        r"cudaErrorInsufficientDriver|unsupported toolchain|CUDA_ERROR_UNSUPPORTED_PTX_VERSION|requires a newer (?:CUDA )?driver",
        NEVER,
        "torch/cuda/__init__.py; cudaErrorInsufficientDriver, cudaErrorUnsupportedPtxVersion",
        "driver-too-old",
    ),
    Pattern(
        "no-gpu",
        r"[Dd]river/library version mismatch|NVML/RM version mismatch|unsupported display driver / cuda driver combination|"
        r"API mismatch: the client|cudaErrorSystemDriverMismatch|CUDA_ERROR_SYSTEM_DRIVER_MISMATCH|LIB_RM_VERSION_MISMATCH|"
        r"LibRmVersionMismatch|"
        r"forward compatibility was attempted|cudaErrorCompatNotSupportedOnDevice",
        NEVER,
        "cudaErrorSystemDriverMismatch, cudaErrorCompatNotSupportedOnDevice; NVML_ERROR_LIB_RM_VERSION_MISMATCH",
        "driver-mismatch",
    ),
    Pattern(
        "no-gpu",
        r"system not yet initialized|cudaErrorSystemNotReady|CUDA_ERROR_SYSTEM_NOT_READY",
        MAYBE,
        "cudaErrorSystemNotReady; pytorch issue 35710",
        "fabric-manager",
    ),
    Pattern("no-gpu", r"\bMPS (?:client|server|daemon)|cudaErrorMps\w+|CUDA_ERROR_MPS_\w+", MAYBE, "cudaErrorMpsConnectionFailed", "mps"),
    Pattern(
        "no-gpu",
        r"CUDA unknown error - this may be due|cuInit\S*.{0,40}\b999\b|cudaGetDeviceCount\S*.{0,200}(?:Error 999|unknown error)",
        MAYBE,
        "torch/cuda/__init__.py; pytorch issue 88639",
        "uvm",
    ),
    Pattern(
        "gpu-fault",
        r"GPU is lost|fallen off the bus|NVMLError_GpuIsLost|CUDA_ERROR_DEVICE_UNAVAILABLE|Unable to determine the device handle for GPU",
        NEVER,  # until the machine has been powered off
        "NVML_ERROR_GPU_IS_LOST; NVIDIA: Xid 79",
        "gpu-lost",
    ),
    Pattern(
        "too-few-gpus",
        r"invalid device ordinal|cudaErrorInvalidDevice\b|CUDA_ERROR_INVALID_DEVICE\b|Invalid device id",
        NEVER,
        "cudaErrorInvalidDevice; torch/cuda/__init__.py",
        "device-ordinal",
    ),
    Pattern(
        "no-gpu",
        r"communicate with the NVIDIA driver|Failed to infer device type|"
        r"No CUDA GPUs are available|[Nn]o CUDA-capable device|Found no NVIDIA driver|DriverNotLoaded|"
        r"Driver Not Loaded|CUDA driver initialization failed|CUDA error: initialization error|cudaErrorInitializationError|"
        r"CUDA_ERROR_NOT_INITIALIZED|CUDA_ERROR_NO_DEVICE|cudaErrorNoDevice|Failed to initialize NVML|NVML Shared Library Not Found",
        MAYBE,  # the driver may be loaded late
        "vllm/config/device.py:56; torch/cuda/__init__.py; pynvml",
    ),
    Pattern(
        "cuda-fork",
        r"Cannot re-initialize CUDA in forked subprocess",
        NEVER,
        "torch/cuda/__init__.py; vllm issues 7077, 8893",
    ),
    Pattern(
        "gpu-fault", r"uncorrectable ECC|cudaErrorECCUncorrectable|CUDA_ERROR_ECC_UNCORRECTABLE", MAYBE, "cudaErrorECCUncorrectable", "ecc"
    ),
    Pattern(
        "gpu-assert",
        r"device-side assert|cudaErrorAssert|thread: \[\d+,\d+,\d+\] Assertion `(?P<assertion>[^`]+)` failed",
        MAYBE,
        "cudaErrorAssert; vllm issues 37159, 21731",
    ),
    Pattern(
        "nccl-error",
        r"Duplicate GPU detected",
        NEVER,
        "NCCL: init.cc; vllm issue 17176",
        "duplicate-gpu",
    ),
    Pattern(
        "shm-full",
        r"Insufficient space in /dev/shm for .*?: (?P<wanted>\d+) MiB required, (?P<free>\d+) MiB free|"
        r"/dev/shm.*No space left on device|No space left on device.*/dev/shm|workers are out of shared memory|"
        r"unable to (?:open|write|resize|allocate) .{0,40}(?:shared memory|</torch_)(?!.*Too many open files)|"
        r"[Cc]ould not (?:create|resize|allocate) .{0,20}shared memory|insufficient shared memory",
        MAYBE,
        "vllm/distributed/device_communicators/shm_broadcast.py:253; NCCL: misc/shmutils.cc; torch: MapAllocator.cpp",
    ),
    Pattern(
        "nccl-timeout",
        r"Watchdog caught collective operation timeout: WorkNCCL\(.*?OpType=(?P<operation>\w+).*?Timeout\(ms\)=(?P<allowed>\d+)|"
        r"Timed out waiting \d+ms for (?:recv|send) operation|wait timeout after \d+ms",
        MAYBE,
        "torch: ProcessGroupNCCL.cpp (vllm issues 5484, 6042), gloo",
    ),
    Pattern(
        "engine-timeout",
        r"Timed out waiting for engine|VLLM_ENGINE_READY_TIMEOUT",
        MAYBE,
        "vllm/v1/engine/utils.py, core_client.py",
    ),
    Pattern("step-timeout", r"RPC call to (?P<method>\w+) timed out", MAYBE, "vllm/v1/executor/multiproc_executor.py:442"),
    Pattern("nccl-error", r"^Last error: (?P<what>.+)", MAYBE, "torch: NCCLUtils.cpp, getNcclErrorDetailStr"),
    Pattern(
        "nccl-error",
        r"NCCL [Ee]rror(?: in: \S+| \d+)?[:,]? ?(?P<what>[^(\n]{0,120})|\bnccl(?:System|Internal|UnhandledCuda|Remote)Error",
        MAYBE,
        "vllm/distributed/device_communicators/pynccl_wrapper.py:448; torch: NCCLUtils.hpp",
    ),
    Pattern(
        "gpu-fault",
        r"when stream is capturing|due to a previous error during capture|cudaErrorStreamCapture\w+|CUDA_ERROR_STREAM_CAPTURE_\w+",
        NEVER,
        "cudaErrorStreamCaptureUnsupported, cudaErrorStreamCaptureInvalidated",
        "graph-capture",
    ),
    Pattern(
        "gpu-fault",
        r"CUDA(?: driver)? error: (?P<what>operation not supported|invalid resource handle|invalid value)|"
        r"\b(?P<status>(?:CUBLAS|CUDNN)_STATUS_(?:NOT_SUPPORTED|INVALID_VALUE|BAD_PARAM))",
        NEVER,
        "cudaErrorNotSupported, cudaErrorInvalidResourceHandle",
        "cuda-refused",
    ),
    Pattern(
        "gpu-fault",
        r"(?:CUDA|Cuda|HIP|CUDNN|cuDNN|CUBLAS)(?: driver| runtime)? (?:error|failure)(?: \d+)?(?: \(\d+\))?:? ?'?(?P<what>[^\n']+)|"
        r"an illegal memory access was encountered|CUDA_ERROR_(?P<name>\w+)|\b(?P<status>(?:CUBLAS|CUDNN)_STATUS_\w+)",
        MAYBE,
        "torch: c10/cuda/CUDAException.cpp; llama.cpp: ggml-cuda.cu",
    ),
)
