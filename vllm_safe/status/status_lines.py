"""The output of `vllm-safe status` and `top`: values for programs, and lines for people. Pure: the time zone is handed in."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from vllm_safe.common.printable_text import printable
from vllm_safe.common.sizes import format_size, format_span
from vllm_safe.contract.recorded_run import Gpu
from vllm_safe.contract.state_file import LoadProgress, State
from vllm_safe.status.demand_lines import DemandStatus, demand_line

_BAR = 16  # columns
COLUMNS = 80  # of a terminal, unless it says otherwise

LocalTime = Callable[[float], time.struct_time]  # from Unix seconds: time.localtime


class GuardEvent(NamedTuple):
    """An action of the guard. time: Unix seconds."""

    time: float
    act: str  # squeeze, freeze, thaw, kill, restore
    text: str


class ModelStatus(NamedTuple):
    """The status of one model at one moment. Units: bytes, Unix seconds, shares 0..1; None: unknown."""

    name: str
    time: float
    active: str = ""  # this and the next three: ActiveState, SubState, Result and StatusText of the unit
    sub: str = ""
    result: str = ""
    status: str = ""
    changed: float | None = None  # when the unit entered this state
    state: State | None = None  # the state file of the current main process
    memory: int | None = None  # anonymous and shared memory, which cannot be dropped
    memory_max: int | None = None
    swap: int | None = None
    swap_max: int | None = None
    memory_pressure: float | None = None
    io_pressure: float | None = None
    os_memory_pressure: float | None = None
    os_io_pressure: float | None = None
    gpus: tuple[Gpu, ...] = ()  # all of the machine, in the order of nvidia-smi
    acts: tuple[GuardEvent, ...] = ()
    preparing: bool = False  # vllm-safe-prepare@NAME runs, before the unit itself starts
    demand: DemandStatus = DemandStatus()

    @property
    def is_running(self) -> bool:
        """Whether the unit has processes."""
        return self.active in {"activating", "active", "deactivating"} and self.sub != "auto-restart"


def describe_phase(seen: ModelStatus) -> str:
    """Return the phase of a model in a few words."""
    if seen.preparing and not seen.is_running:
        return "preparing"
    if seen.sub == "auto-restart":
        return "waiting to start again"
    if seen.state is not None and seen.active not in {"failed", "inactive"}:
        return seen.state.phase
    words = {"activating": "starting", "active": "ready", "deactivating": "stopping", "inactive": "stopped"}
    return words.get(seen.active, seen.active) or "unknown: systemd does not answer"


def status_as_json(seen: ModelStatus, why: str = "") -> dict[str, Any]:
    """Return all that is known, by name; sizes in bytes, times in Unix seconds. `why`: the verdict on the last run."""
    state = seen.state
    plain = {key: value for key, value in seen._asdict().items() if key not in {"state", "acts", "gpus", "demand"}}
    return plain | {
        "phase": describe_phase(seen),
        "since": _since(seen),
        "progress": state.progress._asdict() if state and state.progress else None,
        "running": state.running if state else None,
        "waiting": state.waiting if state else None,
        "tokens": state.tokens if state else None,
        "used": state.used if state else None,
        "idle_timeout": state.idle_timeout if state else 0.0,
        "on_demand": seen.demand.listens,
        "nodes": state.nodes if state else "",
        "gpus": [gpu._asdict() for gpu in seen.gpus],
        "guard": {"count": len(seen.acts), "last": seen.acts[-1]._asdict() if seen.acts else None},
        "why": why,
    }


def status_as_lines(
    seen: ModelStatus, local: LocalTime, why: str = "", *, before: ModelStatus | None = None, columns: int = COLUMNS
) -> list[str]:
    """Return the status as lines for a person: the first has the name, the others are indented.

    before: an earlier status, from which the tokens per second are computed.
    """
    phase, since = describe_phase(seen), _since(seen)
    when = "" if since is None else f" since {_moment(since, seen.time, local)} ({format_span(max(0.0, seen.time - since))})"
    demand = demand_line(seen.demand, seen.state, seen.time, running=seen.is_running)
    if seen.active == "inactive" and since is None and not why:
        return [f"{seen.name}  not started", *(f"  {printable(line)[: columns - 3]}" for line in [demand] if line)]
    lines = [*_first_detail(seen, phase, why)]
    if amounts := _amounts(seen):
        lines.append(", ".join(amounts))
    if seen.is_running and seen.state and seen.state.nodes:
        lines.append(f"with {seen.state.nodes}")
    lines += [*_cards(seen.gpus), *_pressure(seen), *_requests(seen, before), *([demand] if demand else []), *_guard(seen)]
    if phase == "failed":
        lines.append(f"see: vllm-safe why {seen.name}")
    wrapped = (
        textwrap.wrap(printable(line), columns - 1, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False) for line in lines
    )
    return [printable(f"{seen.name}  {phase}{when}"), *(row for rows in wrapped for row in rows)]


def _first_detail(seen: ModelStatus, phase: str, why: str) -> Iterator[str]:
    """Yield what matters most: the progress, why it ended, or what the main process said last."""
    state = seen.state
    if phase == "preparing":
        return  # the unit still has the words of its last run
    if state and state.progress:
        yield _bar(state.progress) + _progress(state.progress)
    elif why and phase in {"failed", "stopped", "waiting to start again"}:
        yield why
    elif state and state.text and phase != "ready":
        yield state.text
    elif seen.status and (not state or phase in {"failed", "waiting to start again"}):
        yield seen.status


def _requests(seen: ModelStatus, before: ModelStatus | None) -> Iterator[str]:
    if (state := seen.state) and state.running is not None:
        tokens = "" if state.tokens is None else f"; {state.tokens} tokens generated"
        yield f"requests: {state.running} running, {state.waiting or 0} waiting{tokens}{_pace(seen, before)}"


def _guard(seen: ModelStatus) -> Iterator[str]:
    if seen.acts:
        last, times = seen.acts[-1], len(seen.acts)
        ago = format_span(max(0.0, seen.time - last.time))
        yield f"guard: acted {'once' if times == 1 else f'{times} times'}, last {ago} ago: {last.text or last.act}"
    elif seen.is_running:
        yield "guard: has not acted"


def _pace(seen: ModelStatus, before: ModelStatus | None) -> str:
    """Return the tokens per second since an earlier status of the same start, or ""."""
    if not (before and before.state and seen.state and before.state.run == seen.state.run and seen.time > before.time):
        return ""
    if seen.state.tokens is None or before.state.tokens is None:
        return ""
    return f" ({max(0, seen.state.tokens - before.state.tokens) / (seen.time - before.time):.1f}/s)"


def _since(seen: ModelStatus) -> float | None:
    return seen.state.since if seen.state and seen.active not in {"failed", "inactive"} else seen.changed


def _moment(moment: float, now: float, local: LocalTime) -> str:
    form = "%H:%M:%S" if local(moment)[:3] == local(now)[:3] else "%Y-%m-%d %H:%M"
    return time.strftime(form, local(moment))


def _bar(progress: LoadProgress) -> str:
    if not progress.total:
        return ""
    filled = round(_BAR * min(1.0, progress.read / progress.total))
    return f"[{'#' * filled}{'.' * (_BAR - filled)}] "


def _progress(progress: LoadProgress) -> str:
    read = format_size(progress.read)
    parts = [
        f"{min(1.0, progress.read / progress.total):.0%}, {read} of {format_size(progress.total)}" if progress.total else f"{read} read"
    ]
    if progress.rate is not None:
        parts.append(f"{format_size(int(progress.rate))}/s")
    if progress.left is not None:
        parts.append(f"{format_span(progress.left)} left")
    return ", ".join(parts)


def _amounts(seen: ModelStatus) -> list[str]:
    return [
        f"{title} {format_size(value)}" + (f" of {format_size(limit)} ({value / limit:.0%})" if limit else "")
        for title, value, limit in (("RAM", seen.memory, seen.memory_max), ("swap", seen.swap, seen.swap_max))
        if value is not None
    ]


def _cards(gpus: tuple[Gpu, ...]) -> list[str]:
    """Return one line about all GPUs, and one about those that are slowed or gone."""
    if not gpus:
        return []
    found = [gpu for gpu in gpus if gpu.total]
    parts = [f"{format_size(sum(gpu.used for gpu in found))} of {format_size(sum(gpu.total for gpu in found))}"]
    if watts := [gpu.power for gpu in found if gpu.power is not None]:
        parts.append(f"{sum(watts):.0f} W")
    parts += _range([gpu.temperature for gpu in found], "{} °C")
    parts += [f"link {link}" for link in dict.fromkeys(map(_link, found)) if link]
    lines = [f"GPUs: {', '.join(parts)}"]
    slowed = {
        "throttled by heat": [number for number, gpu in enumerate(gpus) if gpu.heat],
        "held at the power limit": [number for number, gpu in enumerate(gpus) if gpu.capped],
        "slowed by the power supply or hardware protection": [number for number, gpu in enumerate(gpus) if gpu.braked],
        "without an answer": [number for number, gpu in enumerate(gpus) if not gpu.total],
    }
    return lines + [f"GPU {', '.join(map(str, numbers))} {what}" for what, numbers in slowed.items() if numbers]


def _range(values: list[int | None], form: str) -> list[str]:
    known = sorted({value for value in values if value is not None})
    return [form.format(known[0] if len(known) == 1 else f"{known[0]}-{known[-1]}")] if known else []


def _link(gpu: Gpu) -> str:
    return f"x{gpu.lanes} Gen{gpu.generation}" if gpu.lanes and gpu.generation else ""


def _pressure(seen: ModelStatus) -> list[str]:
    model = _waits(seen.memory_pressure, seen.io_pressure)
    system = _waits(seen.os_memory_pressure, seen.os_io_pressure)
    if not model:
        return []
    return [f"time stalled on {model}" + (f"; system: {system}" if system else "")]


def _waits(memory: float | None, disk: float | None) -> str:
    return ", ".join(f"{what} {share:.0%}" for what, share in (("memory", memory), ("I/O", disk)) if share is not None)
