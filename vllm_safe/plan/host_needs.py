"""The needs of a start beside GPUs: RAM, shared memory, and the time to load the weights."""

from __future__ import annotations

from dataclasses import dataclass, replace

from vllm_safe.common.sizes import MIB, format_size, format_span
from vllm_safe.plan.past_starts import PastStart
from vllm_safe.plan.plan_question import PlanLine
from vllm_safe.plan.serving import Serving

# Private memory of vLLM 0.32's processes, measured with two workers on two H200s (tests/gpu/RESULTS.md: 3.66 GiB spawned, 2.30 GiB
# forked, 1.2 GiB more if it compiles) and without GPUs (the API server and the engine's core).
_SERVER = 790 * MIB
_SPAWNED, _FORKED = 1480 * MIB, 780 * MIB
_COMPILING = 600 * MIB  # of each worker
# Rings of shared memory through which the processes talk: their nominal size in /dev/shm, of which little is touched
# (distributed/device_communicators/shm_broadcast.py).
_RINGS, _RING = 184 * MIB, 240 * MIB
_MARGIN = 0.25  # how far these figures may be off


@dataclass(frozen=True)
class HostLimits:
    """The memory that the machine allows a model, in bytes. 0: not known. memory: `limits.memory_max`; swap: `limits.swap_max`."""

    memory: int = 0
    swap: int = 0
    shared: int = 0  # size of /dev/shm in the unit


@dataclass(frozen=True)
class StoredFiles:
    """The weight files. size: bytes. pace: bytes/s of their disk, if it was measured and the loader reads at that speed; otherwise 0."""

    size: int = 0
    pace: float = 0.0


@dataclass(frozen=True)
class HostNeeds:
    """The needs of a start, in bytes and seconds. load: None if the pace of the disk is not known."""

    memory: int
    shared: int
    load: float | None
    exact: bool = False  # the memory was measured at an earlier start with these arguments
    problem: str = ""  # why it cannot start
    hint: str = ""
    lines: tuple[PlanLine, ...] = ()


def decide_host_needs(  # noqa: PLR0913 - each is another fact
    serving: Serving,
    limits: HostLimits,
    *,
    forked: bool = False,
    files: StoredFiles = StoredFiles(),
    past: tuple[PastStart, ...] = (),
    machines: int = 1,
) -> HostNeeds:
    """Return the needs of a start on one machine. past: earlier starts of this model, the newest last."""
    stored, disk = files.size, files.pace
    workers = serving.ranks // machines
    each = (_FORKED if forked else _SPAWNED) + (0 if serving.enforce_eager else _COMPILING)
    memory, shared = _SERVER + workers * each, _RINGS + (workers * _RING if workers > 1 else 0)
    same = [start for start in past if start.peak and start.observed.serving == serving]
    alike = [start for start in past if start.peak and start.observed.serving.ranks == serving.ranks]
    exact = bool(same)
    if seen := same or alike:
        memory = seen[-1].peak
    pace = disk or next((start.pace for start in reversed(past) if start.pace), 0.0)
    load = stored / pace if stored and pace else None
    needs = HostNeeds(memory, shared, load, exact)
    problem, hint = _problem(needs, limits, workers)
    lines = [_memory_line(needs, limits, workers, measured=bool(seen)), _shared_line(needs)]
    if stored:
        lines.append(_load_line(needs, stored, pace, "as measured by check --disk" if disk else "as in the last start"))
    return replace(needs, problem=problem, hint=hint, lines=tuple(lines))


def _problem(needs: HostNeeds, limits: HostLimits, workers: int) -> tuple[str, str]:
    # The measured start compiled its kernels. One that finds them compiled needs less.
    least = int(needs.memory * (1 - _MARGIN))
    if limits.memory and least > limits.memory + limits.swap:
        allowed = f"{format_size(limits.memory)} of RAM and {format_size(limits.swap)} of swap"
        return (
            f"its processes need about {format_size(needs.memory)} of memory, and may use {allowed}",
            "Raise limits.memory_max, or add swap.",
        )
    # shm_broadcast.py:336: vLLM compares each ring by itself with the free space. A ring takes no memory before it is written to.
    if workers > 1 and 0 < limits.shared < _RING:
        what = f"each pair of its processes needs {format_size(_RING)} in /dev/shm, and it has {format_size(limits.shared)}"
        return what, "Use one GPU, or add RAM, of which /dev/shm has half."
    return "", ""


def _memory_line(needs: HostNeeds, limits: HostLimits, workers: int, *, measured: bool) -> PlanLine:
    why = "the most that an earlier start took" if measured else f"API server, engine and {workers} worker{'s' * (workers > 1)}"
    if limits.memory and needs.memory > limits.memory:
        why += f"; {format_size(needs.memory - limits.memory)} to swap"
    elif limits.memory:
        why += f"; may use {format_size(limits.memory)}"
    return PlanLine("RAM", needs.memory, format_size(needs.memory), needs.exact, why)


def _shared_line(needs: HostNeeds) -> PlanLine:
    return PlanLine("shared memory", needs.shared, format_size(needs.shared), exact=True, why="rings in /dev/shm, of which little is used")


def _load_line(needs: HostNeeds, stored: int, pace: float, source: str) -> PlanLine:
    if needs.load is None:
        return PlanLine("load", None, "?", exact=True, why=f"{format_size(stored)}; to measure the disk: vllm-safe check --disk")
    why = f"{format_size(stored)} at {format_size(int(pace))}/s, {source}"
    return PlanLine("load", None, format_span(needs.load), exact=False, why=why)
