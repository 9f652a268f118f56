"""The phase of a start, from the server's log, one line at a time. Pure. Each pattern has its place in the source of vLLM 0.32 beside it.

tests/unit/launch/test_phases.py contains the output of 0.32.0 on a CPU and on GPUs. A later vLLM may print other lines: an unknown line
changes no phase.

tqdm ends its bars with a carriage return, and vLLM colours its lines if it is configured to: both are removed before a line is compared.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from vllm_safe.common.sizes import GIB
from vllm_safe.common.terminal import ESCAPES
from vllm_safe.contract.state_file import PHASES, ReportedMemory

_LONGEST = 1000  # bytes of a line that are searched; a line that announces a phase is shorter
_REMEMBERED = 256  # different lines: a line that a poller repeats is not new


class LogMark(NamedTuple):
    """The content of one line: a phase, the progress as text ("shard 1 of 4"), and as numbers if the line counts or reports memory.

    figure: a field of ReportedMemory, or "read" if the line counts bytes of the checkpoint.
    """

    phase: str
    text: str = ""
    done: int = 0
    of: int = 0
    figure: str = ""
    value: int = 0


# The beginnings of messages.
_MARKS = (
    # entrypoints/serve/utils/api_utils.py, log_version_and_model and log_non_default_args: after the imports of the API server
    ("importing", r"vLLM server version |non-default args: "),
    # entrypoints/cli/serve.py, run_headless: a machine that is not the first
    ("importing", r"Launching vLLM \(v[^)]{1,40}\) headless multiproc executor"),
    # config/model.py; v1/engine/core.py, EngineCore.__init__
    ("importing", r"Resolved architecture: |Initializing a V1 LLM engine "),
    # distributed/parallel_state.py, init_distributed_environment: before the first context on a GPU and the first connection
    ("initializing", r"world_size=\d+ rank=\d+ local_rank=\d+ distributed_init_method=\S+ backend=(?:(?P<nccl>nccl)|\w+)"),
    # v1/worker/gpu_model_runner.py and cpu_model_runner.py, load_model; v1/worker/gpu/model_runner.py, which is used on GPUs, prints the
    # same; model_executor/model_loader/weight_utils.py, default_loader.py
    ("loading", r"Starting to load model |Loading model from scratch|Filesystem type for checkpoints: |Loading weights took "),
    # model_executor/model_loader/weight_utils.py, _BAR_FORMAT: "Loading safetensors checkpoint shards:  25% Completed | 1/4 [..."
    ("loading", r"(?:Multi-thread l|L)oading [\w ().]{,60}:\s+\d+% Completed \| (?P<shard>\d+)/(?P<shards>\d+)"),
    # the loader of this package: engine/as_engine/vllm_safe_loader/ring_loader.py, _ByteCount
    ("loading", r"vllm-safe: (?P<read>\d+) of (?P<reads>\d+) bytes of the checkpoint"),
    # v1/worker/gpu_model_runner.py and gpu/model_runner.py, load_model
    ("profiling", r"Model loading took (?P<weights>\d+(?:\.\d+)?) GiB memory and "),
    # v1/worker/gpu_worker.py, determine_available_memory: the second line if the size is set, or known from an earlier start
    ("profiling", r"(?:Available KV cache memory: |Initial free memory [\d.]+ GiB, reserved )(?P<cache>-?\d+(?:\.\d+)?) GiB"),
    # v1/core/kv_cache_utils.py, update_kv_cache_capacity
    ("profiling", r"\w+(?: \+ host)? KV cache size: (?P<tokens>\d[\d,]*) tokens"),
    # compilation/monitor.py, backends.py, decorators.py; v1/worker/cpu_model_runner.py, gpu_worker.py
    ("compiling", r"(?:\[\w+\] )?(?:Starting torch\.compile|Dynamo bytecode transform time|Using cache directory: )"),
    ("compiling", r"(?:\[\w+\] )?(?:Directly load (?:the compiled|AOT)|Compiling a graph for |torch\.compile t(?:akes|ook) )"),
    ("compiling", r"Warming up model for the compilation|Compile and warming up model for size "),
    # model_executor/warmup/kernel_warmup.py and jit_warmup.py
    ("compiling", r"(?P<kernels>JIT kernel warmup|Warming up FlashInfer )"),
    # v1/worker/gpu_model_runner.py, _capture_cudagraphs; v1/worker/gpu/cudagraph_utils.py: a plain tqdm bar
    ("capturing", r"Capturing CUDA graphs(?: \([\w ,-]+\))?:\s+\d+%\|[^|]*\|\s*(?P<graph>\d+)/(?P<graphs>\d+)"),
    ("capturing", r"Graph capturing finished in "),
    # v1/engine/core.py, _initialize_kv_caches; entrypoints/launchers/api_server/entry.py; uvicorn/server.py
    ("warming-up", r"init engine \(profile, create kv cache, warmup model\) took |Starting vLLM (?:API )?server |Started server process "),
)
_ANY = re.compile("|".join(f"(?P<_{number}>{pattern})" for number, (_, pattern) in enumerate(_MARKS)))
# logger.py, _FORMAT: "(EngineCore pid=12) INFO 11-23 22:10:48 [core.py:134] message"; uvicorn and tqdm print only parts of it
_PREFIX = re.compile(r"^\s*(?:\(\w+ pid=\d+\)\s+)?(?:(?:DEBUG|INFO|WARNING|ERROR|CRITICAL):?\s+(?:[\d-]+ [\d:]+ \[[^\]]*\]\s+)?)?")
_WORKER = re.compile(r"\(Worker_?(\w*) pid=")
_TIMES = re.compile(r"\d+(?:[:-]\d+)+(?:[.,]\d+)?")


def read_line(line: str) -> LogMark | None:
    """Return the mark in a line of vLLM's log, or None. The line may have colours and prefixes."""
    message = _message(line)
    if not (match := _ANY.match(message)):
        return None
    number = next(number for number in range(len(_MARKS)) if match[f"_{number}"] is not None)
    found = {name: value for name, value in match.groupdict().items() if value is not None and not name.startswith("_")}
    return _mark(_MARKS[number][0], found)


def _message(line: str) -> str:
    plain = ESCAPES.sub("", line) if "\x1b" in line else line
    return _PREFIX.sub("", plain, count=1)


_BYTES = "read"
# The text of a mark for people, by the first of its groups.
_TEXTS = {
    "nccl": "CUDA and NCCL",
    "shard": "shard {shard} of {shards}",
    "graph": "graph {graph} of {graphs}",
    "weights": "{weights} GiB of weights loaded",
    "cache": "{cache} GiB for the KV cache",
    "tokens": "a KV cache of {tokens} tokens",
    "kernels": "kernels",
}


def _mark(phase: str, found: dict[str, str]) -> LogMark:
    name = next(iter(found), "")
    done, of = (int(found[name]), int(found[f"{name}s"])) if f"{name}s" in found else (0, 0)
    text = _TEXTS.get(name, "").format(**found)
    if name in _UNITS:
        return LogMark(phase, text, figure=name, value=int(float(found[name].replace(",", "")) * _UNITS[name]))
    return LogMark(phase, text, done, of, _BYTES if name == _BYTES else "")


_UNITS = {"weights": GIB, "cache": GIB, "tokens": 1}


class PhaseTracker:
    """The phase of one start, from the output of its server. Phases only advance, whatever is printed. Times: the caller's clock."""

    def __init__(self, now: float, phase: str = PHASES[0]) -> None:
        self.phase = phase
        self.since = now
        self.text = ""  # the progress, for people: "shard 1 of 4"
        self.done, self.of = 0, 0  # the same as numbers, while loading: shards
        self.read, self.stored = 0, 0  # bytes of the checkpoint, if the loader counts them
        self.news = 0  # lines so far that had not been printed before: a line that a poller repeats is not progress
        self._known: dict[int, None] = {}  # hashes of the last different lines
        self._torn = b""
        self._has_cache = False  # the size of the KV cache has been decided
        self._weights: dict[str, int] = {}  # by worker
        self._reported = ReportedMemory()

    @property
    def memory(self) -> ReportedMemory | None:
        """The memory figures that the server has reported; None if there are none yet."""
        return None if self._reported == ReportedMemory() else self._reported

    def read_output(self, chunk: bytes, now: float) -> bool:
        """Take a chunk of the output, which may be cut anywhere; return whether the phase has changed."""
        before = self.phase
        lines = (self._torn + chunk).replace(b"\r", b"\n").split(b"\n")
        self._torn = lines.pop()[:_LONGEST]
        for line in lines:
            if line:
                self._take_line(line[:_LONGEST].decode(errors="replace"), now)
        return self.phase != before

    def go(self, phase: str, now: float, text: str = "") -> bool:
        """Advance to a phase; return whether it has changed."""
        if PHASES.index(phase) <= PHASES.index(self.phase):
            return False
        self.phase, self.since, self.text, self.done, self.of = phase, now, text, 0, 0
        return True

    def _take_line(self, line: str, now: float) -> None:
        key = hash(_TIMES.sub("", _message(line)))
        if key in self._known:
            return
        self.news += 1
        self._known[key] = None
        if len(self._known) > _REMEMBERED:
            del self._known[next(iter(self._known))]
        if PHASES.index(self.phase) < _READY and (mark := read_line(line)):
            self._has_cache |= mark.figure == "tokens"
            if mark.figure:
                self._take_figure(mark, line)
            if mark.phase == "capturing" and not self._has_cache:
                return  # v1/worker/gpu/model_runner.py, profile_cudagraph_memory: measures the memory of graphs before kernels are compiled
            self.go(mark.phase, now)
            if mark.phase == self.phase and mark.text:
                self.text = mark.text
                if mark.of and mark.phase == "loading":
                    self.done, self.of = mark.done, mark.of

    def _take_figure(self, mark: LogMark, line: str) -> None:
        if mark.figure == _BYTES:
            self.read, self.stored = mark.done, mark.of
        elif mark.figure == "weights":
            worker = _WORKER.search(line)
            self._weights[worker[1] if worker else ""] = mark.value
            ranks = sorted(self._weights, key=lambda name: (len(name), name))  # PP0_TP0, PP0_TP1, PP1_TP0 ...
            self._reported = self._reported._replace(weights=tuple(self._weights[name] for name in ranks))
        elif mark.figure == "cache":
            before = self._reported.cache
            self._reported = self._reported._replace(cache=mark.value if before is None else min(before, mark.value))
        else:
            self._reported = self._reported._replace(tokens=mark.value)


_READY = PHASES.index("ready")
