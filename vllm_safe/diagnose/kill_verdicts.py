"""Verdicts on kills for memory: at the memory limit, by the guard, by earlyoom, by the kernel when the whole machine was out of memory."""

from __future__ import annotations

import math

from vllm_safe.common.kernfs import MODELS_SLICE
from vllm_safe.common.sizes import GIB, MIB, format_exact, format_size
from vllm_safe.contract.recorded_run import Event
from vllm_safe.diagnose.verdict import Case, Evidence, SettingChange, Verdict

_SHARED = f"/{MODELS_SLICE}"  # the end of the path of the cgroup that holds all models
# Share of its own limit. A single model may reach the shared limit first: that is as large, and counts memory that earlier starts left.
_NEAR = 0.9
_USED_UP = 0.97  # share of a limit
_MOST = 0.9  # share of RAM that a limit may be raised to


def by_guard(case: Case) -> Verdict | None:
    """Decide whether the guard killed it, by the guard's own record."""
    kills = [event for event in case.late("guard") if event.data.get("act") == "kill"]
    if not kills:
        return None
    evidence = [*(_evidence(event) for event in case.late("guard")[-6:]), *memory_figures(case)]
    return Verdict(
        "guard",
        f"{case.name} was {kills[-1].text}",
        kills[-1].time,
        evidence=tuple(evidence),
        changes=_less_memory(case),
        hint="The guard throttles and freezes a model first; it kills only a model that keeps the system under memory pressure.",
    )


def at_memory_limit(case: Case) -> Verdict | None:
    """Decide whether the kernel killed it at memory.max of its own cgroup, or of the slice of all models, which is as large."""
    killed = [event for event in case.late("kernel-oom") if event.data.get("limit") is True]
    if killed and str(killed[-1].data.get("oom_memcg")).endswith(_SHARED) and _held(case, killed) < _NEAR * (case.limit("memory_max") or 0):
        return _at_shared_limit(case, killed)
    events, swap_events = case.end.memory_events, case.end.swap_events
    counted = events.get("oom_kill", 0) > 0 and events.get("oom", 0) > 0
    if not killed and not counted:
        return None
    limit, swap_limit = case.limit("memory_max"), case.limit("swap_max")
    size = f" of {format_size(limit)}" if limit else ""
    no_swap = swap_limit == 0 or (not case.host("swap") and "swap" in case.run.start.host)
    machine_empty = case.fullest.swap_free is not None and case.fullest.swap_free < (1 - _USED_UP) * case.host("swap")
    at_swap_limit = swap_events.get("max", 0) > 0 or _used_up(case.peak("swap"), swap_limit)
    at_swap_limit |= any(_used_up(event.data.get("swap"), event.data.get("swap_limit")) for event in killed)
    if no_swap:
        code, what = "memory-limit-ram", "and there was no swap"
    elif machine_empty:
        code, what = "memory-limit-swap", "and the machine's swap was used up"
    elif at_swap_limit or swap_events.get("fail", 0) > 0:
        code, what = "memory-limit-swap", f"and its swap{f' of {format_size(swap_limit)}' if swap_limit else ''} was used up"
    else:
        code, what = "memory-limit-ram", "with swap still free: its memory cannot be swapped out, or grew faster than it could be"
    evidence = [*(_evidence(event) for event in killed), *memory_figures(case)]
    counts = (
        [f"memory.events: oom_kill {events.get('oom_kill', 0)}, oom {events.get('oom', 0)}, max {events.get('max', 0)}"] if events else []
    )
    counts += [f"memory.swap.events: max {swap_events.get('max', 0)}, fail {swap_events.get('fail', 0)}"] if swap_events else []
    evidence += [Evidence(None, text) for text in counts]
    changes = more_swap(case) if code == "memory-limit-swap" or no_swap else _more_memory(case) or _less_memory(case)
    when = killed[-1].time if killed else case.end.time
    sentence = f"{case.name} was killed by the kernel at its memory limit{size}, {what}."
    return Verdict(code, sentence, when, evidence=tuple(evidence), changes=changes)


def _used_up(swap: object, limit: object) -> bool:
    """Decide whether a swap limit was used up.

    The kernel need not have counted a refusal: with MGLRU it stops 64 pages before the limit, and requests none.
    """
    return isinstance(swap, int) and isinstance(limit, int) and swap >= _USED_UP * limit


def _held(case: Case, killed: list[Event]) -> int:
    """Return the bytes of RAM at the end.

    The kernel's line on the kill counts if it has more than the samples, since memory may grow faster than it is sampled.
    """
    sizes = (event.data.get(kind) for event in killed for kind in ("anon", "shmem", "file"))
    return max(case.fullest.memory or 0, sum(size for size in sizes if isinstance(size, int)))


def _at_shared_limit(case: Case, killed: list[Event]) -> Verdict:
    """Return the verdict on a model within its own limits, which the kernel chose by its score when all models reached the shared limit."""
    return Verdict(
        "memory-limit-shared",
        f"{case.name} was killed by the kernel at the memory limit that all models share; it was within its own.",
        killed[-1].time,
        evidence=(*(_evidence(event) for event in killed), *memory_figures(case)),
        changes=(*more_swap(case), *_less_memory(case)),
        hint="vllm-safe status   shows what the others use: stop one, or give each a limits.memory_max so that all fit together.",
    )


def by_earlyoom(case: Case) -> Verdict | None:
    """Decide whether earlyoom sent a signal to one of its processes."""
    sent = case.late("earlyoom")
    if not sent:
        return None
    lows = [Evidence(event.time, str(event.data["low"])) for event in sent[-1:] if event.data.get("low")]
    return Verdict(
        "earlyoom",
        f"{case.name} was killed by earlyoom: the machine had hardly any RAM and swap left.",
        sent[-1].time,
        evidence=(*lows, *(_evidence(event) for event in sent), *memory_figures(case)),
        changes=(*more_swap(case), *_less_memory(case)),
    )


def by_kernel_outside(case: Case) -> Verdict | None:
    """Decide whether the kernel killed it within its limits because the machine was out of memory."""
    killed = [event for event in case.late("kernel-oom") if event.data.get("limit") is not True]
    events = case.end.memory_events
    counted = events.get("oom_kill", 0) > 0
    if not killed and not counted and case.end.result != "oom-kill":
        return None
    counts = [Evidence(None, f"memory.events: oom_kill {events['oom_kill']}, oom {events.get('oom', 0)}")] if counted else []
    # The counters of its own cgroup cannot distinguish the two cases; only the kernel's lines can.
    what = (
        "the whole machine was out of memory" if killed else "the whole machine was out of memory, or all models reached their shared limit"
    )
    return Verdict(
        "kernel-oom",
        f"{case.name} was killed by the kernel because {what}; it was within its own limits.",
        killed[-1].time if killed else case.end.time,
        evidence=(*(_evidence(event) for event in killed), *counts, *memory_figures(case)),
        changes=(*more_swap(case), *_less_memory(case)),
        hint="Another process used the memory: journalctl -k lists the processes at that time with their sizes.",
    )


def memory_figures(case: Case) -> list[Evidence]:
    """Return the memory figures of the sample with most RAM in its last moments."""
    last = case.fullest
    parts = [
        f"{what} {format_size(value)}{f' of {format_size(most)}' if most else ''}"
        for what, value, most in (
            ("RAM", last.memory, case.limit("memory_max")),
            ("swap", last.swap, case.limit("swap_max")),
            ("shared", last.shmem, None),
        )
        if value is not None
    ]
    left = [
        f"{format_size(value)} of {what}" for what, value in (("RAM", last.ram_available), ("swap", last.swap_free)) if value is not None
    ]
    lines = [f"it used {', '.join(parts)}"] if parts else []
    lines += [f"the machine had {' and '.join(left)} left"] if left else []
    return [Evidence(last.time, line) for line in lines]


def _evidence(event: Event) -> Evidence:
    return Evidence(event.time, event.text)


def more_swap(case: Case) -> tuple[SettingChange, ...]:
    """Return changes that give more swap, to the machine and to the model."""
    swap = -(-case.host("swap") // MIB) * MIB  # the kernel counts a swapfile without its header
    size = _whole(max(swap * 1.5, 16 * GIB))
    changes = [SettingChange("swap.size", format_exact(swap) if swap else "none", size, "room for memory that does not fit into RAM")]
    limit = case.limit("swap_max")
    if swap and limit is not None and limit < 0.85 * swap:  # less than the default of 90 %
        old = format_exact(limit)
        changes.insert(0, SettingChange(case.path("limits.swap_max"), old, "90%", f"{format_size(swap)} of swap is active"))
    return tuple(changes)


def _more_memory(case: Case) -> tuple[SettingChange, ...]:
    limit, ram = case.limit("memory_max"), case.host("memory")
    most = int(ram * _MOST)
    if not limit or limit * 1.05 >= most:
        return ()
    new = min(most, int(limit * 1.25))
    size = _whole(new) if new >= 4 * GIB and math.ceil(new / GIB) * GIB <= most else format_exact(new >> 20 << 20)
    return (SettingChange(case.path("limits.memory_max"), format_exact(limit), size, f"the machine has {format_size(ram)} of RAM"),)


def _less_memory(case: Case) -> tuple[SettingChange, ...]:
    """Return a change that makes vLLM use less memory; () for other servers, whose options are not known."""
    seqs = case.arg("max-num-seqs")
    if case.run.start.command:
        return ()
    fewer = str(max(1, int(seqs) // 2)) if seqs.isdecimal() else "64"
    return (SettingChange(case.path("args.max-num-seqs"), seqs, fewer, "fewer requests at once need less memory"),)


def _whole(size: float) -> str:
    return f"{math.ceil(size / GIB)}G"
