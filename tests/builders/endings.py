"""Runs that ended in every way, as values: tests/golden/why has what `vllm-safe why` answers of each.

What servers say is tried with real texts, through the real path (tests/ends); here are messages of which there is none yet.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from functools import partial
from typing import Any

from tests.builders import card_endings, killers, reasons
from tests.builders.runs import BEGUN, EACH, GIB, LOADING, TIMES, make_run
from vllm_safe.config.profiles import PCIE_RISER
from vllm_safe.contract.recorded_run import Event, Run
from vllm_safe.record.kill_evidence import UNREAD

_AT = BEGUN + 9
ended = partial(make_run, phases=LOADING, each=EACH)
served = partial(make_run, each=EACH)
_KILLED_AFTER, _SERVED_FOR = 10.0, 14.0  # seconds, where systemd alone says that it ended
_KILLED = {"result": "oom-kill", "exit_code": "killed", "exit_status": "KILL"}
_OOM = {"low": 0, "max": 4711, "oom": 3, "oom_kill": 1}


def _said(*lines: str, status: int = 1, **start: object) -> Run:
    log = ["INFO 11-23 22:20:50 [launcher.py:380] vLLM API server version 0.32.0", *lines]
    return ended(end=reasons.exited(status << 8, *log), start=start, log=log)


def _said_serving(*lines: str, status: int = 1, after: float = 2.0, **more: Any) -> Run:  # noqa: ANN401 - whatever make_run takes
    return served(end=reasons.exited_serving(status << 8, *lines, after=after), log=lines, **more)


def _guarded(events: list[Event]) -> Run:
    """Have the guard kill it in the end, as the last of its acts."""
    after = round(events[-1].time - BEGUN) + 1.0
    return ended(end=reasons.exited(_SIGKILL, *_LOG, after=after), events=events)


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
_LOG = ("INFO 11-23 22:20:50 [__init__.py:241] Automatically detected platform cuda.",)
_SIGKILL, _SIGSEGV = 9, 11  # wait statuses
_NO_PROCESS = os.strerror(errno.EAGAIN)
_RISER = {
    "profile": "pcie-riser",
    "times": {key: getattr(PCIE_RISER, key) for key in TIMES},
    "env": {"NCCL_P2P_DISABLE": "1", "VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS": "1800", "VLLM_USE_FLASHINFER_SAMPLER": "0"},
    "args": {"max-model-len": 8192, "tensor-parallel-size": 8, "max-num-seqs": 64, "distributed-timeout-seconds": 7200},
}
_DIED = "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {'EngineCore_DP0': 1}"

CASES: dict[str, Callable[[], Run]] = {
    "memory-limit-swap": lambda: ended(
        seconds=_KILLED_AFTER,
        end=_KILLED | {"memory_events": _OOM, "swap_events": {"high": 0, "max": 80, "fail": 80}},
        events=[killers.kernel(_AT, limit=True)],
        last={"swap": 115 * GIB, "memory": 12 * GIB},
    ),
    "memory-limit-machine-swap": lambda: ended(
        seconds=_KILLED_AFTER,
        end=_KILLED | {"memory_events": _OOM},
        events=[killers.kernel(_AT, limit=True)],
        last={"swap": 99 * GIB, "swap_free": GIB},
    ),
    "memory-limit-no-swap": lambda: ended(
        seconds=_KILLED_AFTER,
        start={"host": {"memory": 16 * GIB, "swap": 0}, "limits": {"memory_max": 12 * GIB, "swap_max": 0}},
        end=_KILLED | {"memory_events": _OOM},
        last={"swap": 0, "swap_free": 0, "memory": 12 * GIB},
    ),
    "memory-limit-shared": lambda: ended(
        seconds=_KILLED_AFTER,
        end=_KILLED | {"memory_events": {"oom": 0, "oom_kill": 1}},
        events=[killers.kernel(_AT, limit=True, memcg=killers.SLICE)],
        last={"swap": 60 * GIB, "memory": 6 * GIB},
    ),
    "memory-limit-ram": lambda: ended(seconds=_KILLED_AFTER, end=_KILLED | {"memory_events": _OOM}, last={"swap": GIB, "shmem": 11 * GIB}),
    "guard": lambda: _guarded(killers.guard(BEGUN + reasons.LOADS_AT)),
    "earlyoom": lambda: ended(end=reasons.exited(1 << 8, *_LOG, after=9.5), events=[killers.earlyoom(_AT)]),
    "kernel-oom-unread": lambda: ended(seconds=_KILLED_AFTER, end=_KILLED | {"memory_events": {"oom": 0, "oom_kill": 1}}, events=[_UNREAD]),
    "kernel-oom": lambda: ended(
        seconds=_KILLED_AFTER, end=_KILLED | {"memory_events": {"oom": 0, "oom_kill": 1}}, events=[killers.kernel(_AT, limit=False)]
    ),
    "stall": lambda: ended(end=reasons.stall(), stuck=reasons.LOADS_AT, last={"io_pressure": 0.98, "disk_read": 0.0}),
    "stall-on-risers": lambda: ended(
        end=reasons.stall(stall_timeout=1800.0), stuck=reasons.LOADS_AT, start=_RISER, last={"io_pressure": 0.98, "disk_read": 0.0}
    ),
    "hang": lambda: served(end=reasons.hang(), stuck=reasons.READY_AT),
    "hang-process-gone": lambda: served(end=reasons.hang(left=()), stuck=reasons.READY_AT),
    "hang-warming-up": lambda: make_run(
        end=reasons.hang_warming_up(), phases=(*LOADING, "warming-up"), each=EACH, stuck=reasons.WARMS_UP_AT
    ),
    "start-timeout": lambda: ended(end=reasons.start_timeout()),
    "watchdog": lambda: served(seconds=_SERVED_FOR, end={"result": "watchdog", "exit_code": "killed", "exit_status": "ABRT"}),
    "timeout": lambda: ended(seconds=_KILLED_AFTER, end={"result": "timeout", "exit_code": "killed", "exit_status": "KILL"}),
    "engine-died": lambda: _said(_DIED),
    "worker-died": lambda: _said_serving(
        "(EngineCore pid=1) ERROR 11-23 22:20:57 [x.py:316] Worker proc VllmWorker-3 died unexpectedly (exit code: -9), shutting down",
        status=0,
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
    "step-timeout": lambda: _said_serving(_RPC, after=300.0),
    "step-timeout-on-risers": lambda: _said_serving(_RPC, after=1800.0, start=_RISER),
    "no-compiler": lambda: _said("RuntimeError: Failed to find C compiler. Please specify via CC environment variable", _DIED),
    "bad-argument": lambda: _said("vllm serve: error: unrecognized arguments: --swap-space", status=2),
    "refused": lambda: make_run(end=reasons.refused(), phases=("starting",), log=()),
    "no-start": lambda: make_run(end=reasons.not_started(_NO_PROCESS), phases=("starting",), log=()),
    "gave-up": lambda: make_run(
        start={"run": "20261123T222130-2b3c4d5e"}, begun=BEGUN + 42, end=reasons.gave_up(BEGUN + 43), phases=("starting",), log=()
    ),
    "node": lambda: served(end=reasons.node_ended()),
    "network": lambda: served(end=reasons.node_ended(silent=True)),
    "signal": lambda: served(end=reasons.exited_serving(_SIGKILL)),
    "signal-unread": lambda: served(end=reasons.exited_serving(_SIGKILL), events=[_UNREAD]),
    "signal-to-main": lambda: served(seconds=_SERVED_FOR, end={"result": "signal", "exit_code": "killed", "exit_status": "KILL"}),
    "crashed": lambda: served(end=reasons.exited_serving(_SIGSEGV), start={"command": True}),
    "power-cut": lambda: served(seconds=_SERVED_FOR, start={"boot": "11111111-0b5a-4c39-9d2e-8a7b6c5d4e3f"}),
    "stopped": lambda: served(end=reasons.stopped()),
    "stopped-or-shutdown": lambda: served(start={"boot": "11111111-0b5a-4c39-9d2e-8a7b6c5d4e3f"}, end=reasons.stopped()),
    "made-room": lambda: served(end=reasons.made_room()),
    "idle": lambda: served(end=reasons.idle()),
    "running": partial(served, seconds=_SERVED_FOR),
    "exited": lambda: make_run(end=reasons.exited(0, after=1.0), phases=("starting",), log=()),
    "unknown": lambda: ended(seconds=_KILLED_AFTER, end={"result": "success"}, log=("it said nothing of note",)),
}
CASES |= card_endings.CASES
# The run before, where the answer is about that.
BEFORE: dict[str, Callable[[], Run]] = {
    "no-start": lambda: make_run(end=reasons.not_started(_NO_PROCESS), phases=("starting",), log=()),
    "gave-up": lambda: ended(
        seconds=_KILLED_AFTER,
        start={"restart": 3},
        end=_KILLED | {"memory_events": _OOM, "swap_events": {"high": 0, "max": 80, "fail": 80}},
        events=[killers.kernel(_AT, limit=True)],
        last={"swap": 115 * GIB, "memory": 12 * GIB},
    ),
}
