"""Verdicts on runs that were ended because they took too long: a load or an answer without progress, a timeout, the watchdog."""

from __future__ import annotations

import math
import re

from vllm_safe.common.sizes import format_size, format_span
from vllm_safe.diagnose.advice import change_profile_to_riser, riser_evidence
from vllm_safe.diagnose.error_verdicts import error_evidence, last_lines, launcher_evidence
from vllm_safe.diagnose.kill_verdicts import memory_figures
from vllm_safe.diagnose.verdict import Case, Evidence, SettingChange, Verdict
from vllm_safe.launch.load_progress import WAITS
from vllm_safe.launch.loading import IN_VAIN
from vllm_safe.launch.phases import read_line

_AGAIN = 3  # lines, one a minute, which report that a worker does not respond: fewer of them are a slow step
_STOPPED = re.compile(r"its process .* is (?:stopped|gone)")  # the wording of launch/loading.py and launch/liveness.py


def load_stalled(case: Case) -> Verdict | None:
    """Decide whether it made no progress while it loaded."""
    if case.end.cause != "stall":
        return None
    if _in_vain(case):
        return _waited(case, "stall")
    return _stuck(case, f"{case.name} hung while loading ({case.phase or 'starting'}) and was ended: {case.end.reason}", "stall_timeout")


def hung(case: Case) -> Verdict | None:
    """Decide whether it hung while it served or warmed up."""
    if case.end.cause != "hang":
        return None
    if _in_vain(case):
        return _waited(case, "hang")
    return _stuck(case, f"{case.name} hung {_when(case)} and was ended: {case.end.reason}", "hang_timeout")


def start_timeout(case: Case) -> Verdict | None:
    """Decide whether it loaded for too long."""
    if case.end.cause != "start-timeout":
        return None
    if _in_vain(case):
        return _waited(case, "stall")
    read = case.peak("read")
    far = [Evidence(case.last.time, f"it had read {format_size(read)} of its model")] if read else []
    return Verdict(
        "start-timeout",
        f"{case.name} was ended because it was not ready in time: {case.end.reason}",
        case.end.time,
        evidence=(*launcher_evidence(case), *far, *_pressure(case), *last_lines(case)),
        changes=_longer(case, "start_timeout"),
    )


def watchdog(case: Case) -> Verdict | None:
    """Decide whether systemd's watchdog killed it."""
    if case.end.result != "watchdog":
        return None
    sentence = f"{case.name} was killed by the systemd watchdog: its main process sent no keep-alive in time (WatchdogSec=)."
    hint = "Either the machine was starved of CPU time or memory, or the process was stopped (SIGSTOP)."
    evidence = (*launcher_evidence(case), *_pressure(case), *memory_figures(case))
    return Verdict("watchdog", sentence, case.end.time, evidence=evidence, hint=hint)


def systemd_timeout(case: Case) -> Verdict | None:
    """Decide whether systemd's own timeout on a start or a stop ended it."""
    if case.end.result != "timeout":
        return None
    sentence = f"{case.name} was killed by systemd: its start or stop timed out."
    return Verdict("timeout", sentence, case.end.time, evidence=(*launcher_evidence(case), *_pressure(case), *last_lines(case)))


def _stuck(case: Case, sentence: str, setting: str) -> Verdict:
    # A process that is gone has a time limit of its own (launch/liveness.py), so a longer hang_timeout would change nothing.
    longer = _longer(case, setting) if f"({setting})" in case.end.reason else ()
    changes = (*(change_profile_to_riser(case) if _workers(case) > 1 else ()), *longer)
    code = "stall" if setting == "stall_timeout" else "hang"
    slow = "; a longer timeout helps only if the model was merely slow" if longer else ""
    return Verdict(code, sentence, case.end.time, evidence=_signs(case), changes=changes, hint=f"{_stacks(case)}{slow}.")


def _waited(case: Case, code: str) -> Verdict:
    """Return the verdict on processes that waited for each other without progress: a longer timeout does not help."""
    several = _workers(case) > 1
    who = "its workers waited for each other without progress" if several else "its engine waited for its worker without progress"
    changes = _apart(case) if several else ()
    evidence = riser_evidence(case) if len(changes) > 1 else ""
    way = "" if changes else "NCCL_DEBUG: INFO in its env may show more"
    way = f"profile: pcie-riser sets both, and more ({evidence})" if evidence else way
    hint = f"A longer timeout does not help{'; ' + way if way else ''}. {_stacks(case)}."
    sentence = f"{case.name} hung {_when(case)} and was ended: {who}."
    return Verdict(code, sentence, case.end.time, evidence=_signs(case), changes=changes, hint=hint)


def _in_vain(case: Case) -> bool:
    """Decide whether its processes waited for each other, by the main process or the log, and none of them was stopped or gone."""
    return (IN_VAIN in case.end.reason or _says_in_vain(case.run.log)) and not _STOPPED.search(case.end.reason)


def _says_in_vain(log: tuple[str, ...]) -> bool:
    """Decide whether the log reports repeatedly that a worker does not respond, with few other lines between and no progress after."""
    waits = [number for number, line in enumerate(log) if WAITS.search(line)]
    again = len(waits) >= _AGAIN and waits[-1] - waits[-_AGAIN] < 2 * _AGAIN
    return again and not any(read_line(line) for line in log[waits[-1] :])


def _when(case: Case) -> str:
    if case.was_ready:
        return "while serving"
    return "while warming up" if case.end.cause == "hang" else f"while loading ({case.phase or 'starting'})"


def _signs(case: Case) -> tuple[Evidence, ...]:
    events = [Evidence(event.time, event.text) for event in case.of(case.end.cause) if event.text != case.end.reason]
    return (*events, *launcher_evidence(case), *error_evidence(case), *_pressure(case), *memory_figures(case), *last_lines(case))


def _stacks(case: Case) -> str:
    return f"journalctl -u vllm@{case.name} has the stack traces of its threads, if they could be read"


def _apart(case: Case) -> tuple[SettingChange, ...]:
    """Return the changes that make the cards communicate through RAM, as far as they are not set yet."""
    reduce, direct = case.arg("disable-custom-all-reduce"), case.env("NCCL_P2P_DISABLE")
    reason = "it hangs where the GPUs have no peer access to each other's memory"
    changes = [SettingChange(case.path("args.disable-custom-all-reduce"), reduce, "true", reason)] if reduce.lower() != "true" else []
    changes += (
        [SettingChange(case.path("env.NCCL_P2P_DISABLE"), direct, '"1"', "NCCL then uses RAM, for the same reason")]
        if direct != "1"
        else []
    )
    return tuple(changes)


def _pressure(case: Case) -> list[Evidence]:
    last = case.last
    parts = [f"{what} {share:.0%}" for what, share in (("disk", last.io_pressure), ("memory", last.memory_pressure)) if share is not None]
    rate = f"; the disks read {format_size(int(last.disk_read))}/s" if last.disk_read is not None else ""
    return [Evidence(last.time, f"share of time stalled on: {', '.join(parts)}{rate}")] if parts else []


def _workers(case: Case) -> int:
    sizes = (case.arg(f"{kind}-parallel-size") for kind in ("tensor", "pipeline", "data"))
    return math.prod(int(size) for size in sizes if size.isdecimal() and len(size) < 6)


def _longer(case: Case, setting: str) -> tuple[SettingChange, ...]:
    return case.longer(setting, f"at least twice the {format_span(case.run.start.times.get(setting, 0.0))} that did not suffice")
