"""What the server's log says of how far it is: pure, one line at a time. Each pattern with its place in the source of vLLM 0.32.

tests/unit/launch/test_phases.py has what 0.32.0 printed on a CPU and on cards. A later vLLM may say it otherwise: a line that nobody knows
moves no phase.

tqdm ends its bars with a carriage return, and vLLM colours its lines where it is told to: both are taken off before anything is compared.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from vllm_safe.common.terminal import ESCAPES
from vllm_safe.contract.state_file import PHASES

_LONGEST = 1000  # bytes of a line that are looked at; what announces a phase is shorter
_REMEMBERED = 256  # different lines: what a poller repeats is no news


class LogMark(NamedTuple):
    """What one line announces: a phase, how far for a person ("shard 1 of 4"), and the same in numbers where it counts."""

    phase: str
    text: str = ""
    done: int = 0
    of: int = 0


# What the message of a line begins with.
_MARKS = (
    # entrypoints/serve/utils/api_utils.py, log_version_and_model and log_non_default_args: after the API server's own imports
    ("importing", r"vLLM server version |non-default args: "),
    # config/model.py; v1/engine/core.py, EngineCore.__init__
    ("importing", r"Resolved architecture: |Initializing a V1 LLM engine "),
    # distributed/parallel_state.py, init_distributed_environment: before the first context on a card and the first connection
    ("initializing", r"world_size=\d+ rank=\d+ local_rank=\d+ distributed_init_method=\S+ backend=(?:(?P<nccl>nccl)|\w+)"),
    # v1/worker/gpu_model_runner.py and cpu_model_runner.py, load_model; the same of v1/worker/gpu/model_runner.py, which cards get;
    # model_executor/model_loader/weight_utils.py, default_loader.py
    ("loading", r"Starting to load model |Loading model from scratch|Filesystem type for checkpoints: |Loading weights took "),
    # model_executor/model_loader/weight_utils.py, _BAR_FORMAT: "Loading safetensors checkpoint shards:  25% Completed | 1/4 [..."
    ("loading", r"(?:Multi-thread l|L)oading [\w ().]{,60}:\s+\d+% Completed \| (?P<shard>\d+)/(?P<shards>\d+)"),
    # v1/worker/gpu_model_runner.py and gpu/model_runner.py, load_model
    ("profiling", r"Model loading took (?P<weights>[\d.]+) GiB memory and "),
    # v1/worker/gpu_worker.py, determine_available_memory; v1/core/kv_cache_utils.py, update_kv_cache_capacity
    ("profiling", r"Available KV cache memory: (?P<cache>-?[\d.]+) GiB"),
    ("profiling", r"\w+(?: \+ host)? KV cache size: (?P<tokens>[\d,]+) tokens"),
    # compilation/monitor.py, backends.py, decorators.py; v1/worker/cpu_model_runner.py, gpu_worker.py
    ("compiling", r"(?:\[\w+\] )?(?:Starting torch\.compile|Dynamo bytecode transform time|Using cache directory: )"),
    ("compiling", r"(?:\[\w+\] )?(?:Directly load (?:the compiled|AOT)|Compiling a graph for |torch\.compile t(?:akes|ook) )"),
    ("compiling", r"Warming up model for the compilation|Compile and warming up model for size "),
    # model_executor/warmup/kernel_warmup.py and jit_warmup.py
    ("compiling", r"(?P<kernels>JIT kernel warmup|Warming up FlashInfer )"),
    # v1/worker/gpu_model_runner.py, _capture_cudagraphs; v1/worker/gpu/cudagraph_utils.py: a plain bar of tqdm
    ("capturing", r"Capturing CUDA graphs(?: \([\w ,-]+\))?:\s+\d+%\|[^|]*\|\s*(?P<graph>\d+)/(?P<graphs>\d+)"),
    ("capturing", r"Graph capturing finished in "),
    # v1/engine/core.py, _initialize_kv_caches; entrypoints/launchers/api_server/entry.py; uvicorn/server.py
    ("warming-up", r"init engine \(profile, create kv cache, warmup model\) took |Starting vLLM (?:API )?server |Started server process "),
)
_ANY = re.compile("|".join(f"(?P<_{number}>{pattern})" for number, (_, pattern) in enumerate(_MARKS)))
# logger.py, _FORMAT: "(EngineCore pid=12) INFO 11-23 22:10:48 [core.py:134] message"; uvicorn and tqdm have less of it
_PREFIX = re.compile(r"^\s*(?:\(\w+ pid=\d+\)\s+)?(?:(?:DEBUG|INFO|WARNING|ERROR|CRITICAL):?\s+(?:[\d-]+ [\d:]+ \[[^\]]*\]\s+)?)?")
_TIMES = re.compile(r"\d+(?:[:-]\d+)+(?:[.,]\d+)?")


def read_line(line: str) -> LogMark | None:
    """What a line of vLLM's log announces, if it does. Colours and prefixes as they come."""
    message = _message(line)
    if not (match := _ANY.match(message)):
        return None
    number = next(number for number in range(len(_MARKS)) if match[f"_{number}"] is not None)
    found = {name: value for name, value in match.groupdict().items() if value is not None and not name.startswith("_")}
    return _mark(_MARKS[number][0], found)


def _message(line: str) -> str:
    plain = ESCAPES.sub("", line) if "\x1b" in line else line
    return _PREFIX.sub("", plain, count=1)


_CACHE = "a KV cache of"
# What a mark says to a person, by the first of its groups.
_TEXTS = {
    "nccl": "CUDA and NCCL",
    "shard": "shard {shard} of {shards}",
    "graph": "graph {graph} of {graphs}",
    "weights": "{weights} GiB of weights loaded",
    "cache": "{cache} GiB for the KV cache",
    "tokens": f"{_CACHE} {{tokens}} tokens",
    "kernels": "kernels",
}


def _mark(phase: str, found: dict[str, str]) -> LogMark:
    name = next(iter(found), "")
    counted = (int(found[name]), int(found[f"{name}s"])) if f"{name}s" in found else ()
    return LogMark(phase, _TEXTS.get(name, "").format(**found), *counted)


class PhaseTracker:
    """How far one start is, by what its server prints. Phases only go forward, whatever is printed. Times are the caller's."""

    def __init__(self, now: float, phase: str = PHASES[0]) -> None:
        self.phase = phase
        self.since = now
        self.text = ""  # how far, for a person: "shard 1 of 4"
        self.done, self.of = 0, 0  # the same in numbers, while loading: shards
        self.news = 0  # lines so far that were not said before: what a poller repeats moves nothing
        self._known: dict[int, None] = {}  # hashes of the last different lines
        self._torn = b""
        self._has_cache = False  # the KV cache has its size

    def hear(self, chunk: bytes, now: float) -> bool:
        """Take what the server printed, cut anywhere; whether the phase is another one now."""
        before = self.phase
        lines = (self._torn + chunk).replace(b"\r", b"\n").split(b"\n")
        self._torn = lines.pop()[:_LONGEST]
        for line in lines:
            if line:
                self._hear_line(line[:_LONGEST].decode(errors="replace"), now)
        return self.phase != before

    def go(self, phase: str, now: float, text: str = "") -> bool:
        """Go on to a phase that the main process knows of itself; whether that is another one."""
        if PHASES.index(phase) <= PHASES.index(self.phase):
            return False
        self.phase, self.since, self.text, self.done, self.of = phase, now, text, 0, 0
        return True

    def _hear_line(self, line: str, now: float) -> None:
        key = hash(_TIMES.sub("", _message(line)))
        if key in self._known:
            return
        self.news += 1
        self._known[key] = None
        if len(self._known) > _REMEMBERED:
            del self._known[next(iter(self._known))]
        if PHASES.index(self.phase) < _READY and (mark := read_line(line)):
            self._has_cache |= mark.text.startswith(_CACHE)
            if mark.phase == "capturing" and not self._has_cache:
                return  # v1/worker/gpu/model_runner.py, profile_cudagraph_memory: to see what graphs take, before kernels are compiled
            self.go(mark.phase, now)
            if mark.phase == self.phase and mark.text:
                self.text = mark.text
                if mark.of and mark.phase == "loading":
                    self.done, self.of = mark.done, mark.of


_READY = PHASES.index("ready")
