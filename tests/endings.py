"""Runs that ended in every way, as values: what tests/golden/why holds as files. From tests/runs.py, with what differs.

What servers say is tried with real texts, through the real path (tests/ends); here are messages of which there is none yet.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from tests import card_endings, reasons
from tests.runs import BEGUN, GIB, TIMES, make_run
from vllm_safe.config.profiles import PCIE_RISER
from vllm_safe.contract.recorded_run import Event, Run
from vllm_safe.record.kill_evidence import UNREAD

_LOADING = ("starting", "importing", "loading")
_AT = BEGUN + 9
ended = partial(make_run, phases=_LOADING, seconds=10)
served = partial(make_run, seconds=14)
_KILLED = {"result": "oom-kill", "exit_code": "killed", "exit_status": "KILL"}
_OOM = {"low": 0, "max": 4711, "oom": 3, "oom_kill": 1}


def _oom(*, limit: bool, memcg: str = "/vllm.slice/vllm@qwen72b.service") -> Event:
    where = "at a memory limit" if limit else "because the machine was out of memory"
    data = {"pid": 71, "limit": limit, "oom_memcg": memcg if limit else ""}
    return Event(_AT, "kernel-oom", f"the kernel killed process 71 (VLLM::Worker_TP) {where}", data)


def _said(*lines: str, status: int = 1, **start: object) -> Run:
    words = lines[-1]
    reason = f"the server ended after 9 s, before it was ready (exit status {status}): {words}"
    end = {"cause": "exited", "reason": reason, "result": "exit-code", "exit_code": "exited", "exit_status": str(status)}
    return ended(end=end, start=start, log=["INFO 11-23 22:20:50 [launcher.py:380] vLLM API server version 0.32.0", *lines])


_UNREAD = Event(BEGUN + 13, "unread", UNREAD)
_KV = (
    "(EngineCore pid=71) ERROR 11-23 22:20:57 [core.py:1510] ValueError: To serve at least one request with the model's max seq "
    "len (32768), (10.0 GiB KV cache is needed, which is larger than the available KV cache memory (4.56 GiB). Based on "
    "the available memory, the estimated maximum model length is 14928. Try increasing `gpu_memory_utilization`"
)
_TAKEN = (
    "(Worker_TP1 pid=9) ERROR 11-23 22:20:57 [multiproc_executor.py:953] ValueError: Free memory on device cuda:1 (9.81/11.76 GiB) on "
    "startup is less than desired GPU memory utilization (0.92, 10.82 GiB). Decrease GPU memory utilization"
)
_WATCHDOG = (
    "[rank3]:[E1123 22:20:57.71 ProcessGroupNCCL.cpp:607] [Rank 3] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=1, "
    "OpType=ALLREDUCE, NumelIn=1, NumelOut=1, Timeout(ms)=600000) ran for 600061 milliseconds before timing out."
)
_RPC = "(EngineCore pid=71) ERROR 11-23 22:20:57 [core.py:1510] TimeoutError: RPC call to sample_tokens timed out."
_STEP = {"cause": "exited", "reason": "the server ended after serving for 5 min (exit status 1)", "result": "exit-code"}
_RISER = {
    "profile": "pcie-riser",
    "times": {key: getattr(PCIE_RISER, key) for key in TIMES},
    "env": {"NCCL_P2P_DISABLE": "1", "VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS": "1800", "VLLM_USE_FLASHINFER_SAMPLER": "0"},
    "args": {"max-model-len": 8192, "tensor-parallel-size": 8, "max-num-seqs": 64, "distributed-timeout-seconds": 7200},
}
_DIED = "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {'EngineCore_DP0': 1}"

CASES: dict[str, Callable[[], Run]] = {
    "memory-limit-swap": lambda: ended(
        end=_KILLED | {"memory_events": _OOM, "swap_events": {"high": 0, "max": 80, "fail": 80}},
        events=[_oom(limit=True)],
        last={"swap": 115 * GIB, "memory": 12 * GIB},
    ),
    "memory-limit-machine-swap": lambda: ended(
        end=_KILLED | {"memory_events": _OOM}, events=[_oom(limit=True)], last={"swap": 99 * GIB, "swap_free": GIB}
    ),
    "memory-limit-no-swap": lambda: ended(
        start={"host": {"memory": 16 * GIB, "swap": 0}, "limits": {"memory_max": 12 * GIB, "swap_max": 0}},
        end=_KILLED | {"memory_events": _OOM},
        last={"swap": 0, "swap_free": 0, "memory": 12 * GIB},
    ),
    "memory-limit-shared": lambda: ended(
        end=_KILLED | {"memory_events": {"oom": 0, "oom_kill": 1}},
        events=[_oom(limit=True, memcg="/vllm.slice")],
        last={"swap": 60 * GIB, "memory": 6 * GIB},
    ),
    "memory-limit-ram": lambda: ended(end=_KILLED | {"memory_events": _OOM}, last={"swap": GIB, "shmem": 11 * GIB}),
    "guard": lambda: ended(
        end={"cause": "exited", "reason": "the server ended after 9 s, before it was ready (killed by SIGKILL)"},
        events=[
            Event(
                BEGUN + 5,
                "guard",
                "frozen for at most 3 s: system services spent 52% of the last 10 s stalled on memory (guard.freeze_pressure)",
                {"act": "freeze"},
            ),
            Event(
                _AT,
                "guard",
                "killed by the vllm-safe guard: system services spent 82% of the last 60 s stalled on memory (guard.kill_pressure)",
                {"act": "kill"},
            ),
        ],
    ),
    "earlyoom": lambda: ended(
        end={"cause": "exited", "reason": "the server ended after 9 s, before it was ready (exit status 1)"},
        events=[
            Event(_AT, "earlyoom", "earlyoom sent SIGTERM to process 71 (VLLM::Worker_TP)", {"low": "low memory! mem 4.90 %, swap 4.10 %"})
        ],
    ),
    "kernel-oom-unread": lambda: ended(end=_KILLED | {"memory_events": {"oom": 0, "oom_kill": 1}}, events=[_UNREAD]),
    "kernel-oom": lambda: ended(end=_KILLED | {"memory_events": {"oom": 0, "oom_kill": 1}}, events=[_oom(limit=False)]),
    "stall": lambda: ended(end=reasons.stall(), last={"io_pressure": 0.98, "disk_read": 0.0}),
    "stall-on-risers": lambda: ended(end=reasons.stall(stall_timeout=1800.0), start=_RISER, last={"io_pressure": 0.98, "disk_read": 0.0}),
    "hang": lambda: served(end=reasons.hang()),
    "hang-process-gone": lambda: served(end=reasons.hang(left=())),
    "hang-warming-up": lambda: make_run(end=reasons.hang_warming_up(), phases=(*_LOADING, "warming-up"), seconds=12),
    "start-timeout": lambda: ended(end=reasons.start_timeout()),
    "watchdog": lambda: served(end={"result": "watchdog", "exit_code": "killed", "exit_status": "ABRT"}),
    "timeout": lambda: ended(end={"result": "timeout", "exit_code": "killed", "exit_status": "KILL"}),
    "engine-died": lambda: _said(_DIED),
    "worker-died": lambda: served(
        end={"cause": "exited", "reason": "the server ended after serving for 2 s (exit status 0)"},
        log=[
            "(EngineCore pid=1) ERROR 11-23 22:20:57 [x.py:316] Worker proc VllmWorker-3 died unexpectedly (exit code: -9), shutting down"
        ],
    ),
    "cuda-memory": lambda: _said(
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 224.00 MiB. GPU 0 has a total capacity of 11.53 GiB of which "
        "187.75 MiB is free.",
        _DIED,
    ),
    "kv-cache-too-small": lambda: _said(_KV, _DIED, args={"max-model-len": 32768}),
    "longer-than-model": lambda: _said(
        "  Value error, User-specified max_model_len (99999) is greater than the derived max_model_len (max_position_embeddings=2048 or x"
    ),
    "gpu-taken": lambda: _said(_TAKEN, _DIED),
    "kv-space": lambda: _said(
        "ValueError: Available memory on node 0 (5.51/15.93 GiB) on kv cache allocation is less than requested memory for kv (40.0 GiB)."
    ),
    "too-few-gpus": lambda: _said("  Value error, World size (8) is larger than the number of available GPUs (7) in this node."),
    "heads": lambda: _said("ValueError: Total number of attention heads (64) must be divisible by tensor parallel size (7)."),
    "port-taken": lambda: _said("OSError: [Errno 98] Address already in use"),
    "no-model": lambda: _said("  Value error, Invalid repository ID or local directory specified: '/srv/models/none'."),
    "gated": lambda: _said("OSError: You are trying to access a gated repo."),
    "disk-full": lambda: _said("OSError: [Errno 28] No space left on device: '/var/cache/vllm-safe/x'"),
    "nccl-timeout": lambda: _said(_WATCHDOG, _DIED),
    "nccl-timeout-on-risers": lambda: _said(_WATCHDOG, _DIED, **_RISER),
    "no-nvcc": lambda: _said("RuntimeError: Could not find nvcc and default cuda_home='/usr/local/cuda' doesn't exist", _DIED),
    "no-nvcc-for-the-sampler": lambda: _said("RuntimeError: Could not find nvcc and default cuda_home='/x' doesn't exist", _DIED, env={}),
    "step-timeout": lambda: served(end=_STEP, log=[_RPC]),
    "step-timeout-on-risers": lambda: served(end=_STEP, log=[_RPC], start=_RISER),
    "no-compiler": lambda: _said("RuntimeError: Failed to find C compiler. Please specify via CC environment variable", _DIED),
    "bad-argument": lambda: _said("vllm serve: error: unrecognized arguments: --swap-space", status=2),
    "refused": lambda: ended(
        end={"cause": "refused", "reason": "port 8000 is taken: something listens on 127.0.0.1", "result": "exit-code", "exit_status": "2"},
        phases=("starting",),
        seconds=1,
        log=(),
    ),
    "no-start": lambda: ended(
        end={"cause": "no-start", "reason": "the server could not be started: Resource temporarily unavailable", "result": "exit-code"},
        phases=("starting",),
        seconds=1,
        log=(),
    ),
    "gave-up": lambda: ended(
        start={"run": "20261123T222130-2b3c4d5e"},
        end={
            "time": BEGUN + 43,
            "cause": "gave-up",
            "reason": "qwen72b was restarted 3 times within an hour and ended again: it stays down. "
            "vllm-safe why qwen72b says why it ended; then: systemctl start vllm@qwen72b",
            "result": "exit-code",
            "exit_status": "2",
        },
        phases=("starting",),
        seconds=1,
        log=(),
    ),
    "signal": lambda: served(
        end={"cause": "exited", "reason": "the server ended after serving for 2 s (killed by SIGKILL)", "result": "exit-code"}
    ),
    "signal-unread": lambda: served(
        end={"cause": "exited", "reason": "the server ended after serving for 2 s (killed by SIGKILL)"}, events=[_UNREAD]
    ),
    "signal-to-main": lambda: served(end={"result": "signal", "exit_code": "killed", "exit_status": "KILL"}),
    "crashed": lambda: served(
        end={"cause": "exited", "reason": "the server ended after serving for 2 s (killed by SIGSEGV)"}, start={"command": True}
    ),
    "power-cut": lambda: served(start={"boot": "11111111-0b5a-4c39-9d2e-8a7b6c5d4e3f"}),
    "stopped": lambda: served(end={"cause": "stopped", "reason": "stopping: running requests have 30 s", "result": "success"}),
    "stopped-or-shutdown": lambda: served(
        start={"boot": "11111111-0b5a-4c39-9d2e-8a7b6c5d4e3f"},
        end={"cause": "stopped", "reason": "stopping: running requests have 30 s", "result": "success"},
    ),
    "running": served,
    "exited": lambda: ended(end={"cause": "exited", "reason": "the server ended after 1 s, before it was ready (exit status 0)"}, log=()),
    "unknown": lambda: ended(end={"result": "success"}, log=("it said nothing of note",)),
}
CASES |= card_endings.CASES
# The run before, where the answer is about that.
BEFORE: dict[str, Callable[[], Run]] = {
    "no-start": lambda: ended(
        end={"cause": "no-start", "reason": "the server could not be started: Resource temporarily unavailable", "result": "exit-code"},
        phases=("starting",),
        seconds=1,
        log=(),
    ),
    "gave-up": lambda: ended(
        start={"restart": 3},
        end=_KILLED | {"memory_events": _OOM, "swap_events": {"high": 0, "max": 80, "fail": 80}},
        events=[_oom(limit=True)],
        last={"swap": 115 * GIB, "memory": 12 * GIB},
    ),
}
