"""Ends that the main process, systemd or the next boot tell of: stopped, refused, stuck, signalled, gone; and that nobody knows."""

from __future__ import annotations

import math
import re

from vllm_safe.decide.why.advice import on_risers, riser
from vllm_safe.decide.why.kills import memory_figures
from vllm_safe.decide.why.verdict import Case, Change, Evidence, Verdict
from vllm_safe.decide.why.words import NOBODY, error_of, last_lines, said_by_main, told
from vllm_safe.launch.death_patterns import BY_ITSELF
from vllm_safe.launch.loading import IN_VAIN
from vllm_safe.launch.phases import read_line
from vllm_safe.launch.progress import WAITS
from vllm_safe.sizes import format_size, format_span

_KILLED = re.compile(r"killed by (SIG\w+|signal \d+)")

_AGAIN = 3  # lines, one a minute, that a worker does not answer: fewer are a slow step
_STOPPED = re.compile(r"its process .* is (?:stopped|gone)")  # in the words of launch/loading.py and launch/liveness.py


def running(case: Case) -> Verdict | None:
    """It has not stopped."""
    if not case.is_running:
        return None
    phase = {"ready": "serves", "": "runs"}.get(case.phase, f"is starting ({case.phase})")
    since = format_span(max(0.0, case.now - case.run.start.time))
    return Verdict("running", f"{case.name} {phase}; it was started {since} ago.", case.run.start.time, "good", (*memory_figures(case),))


def machine_went_down(case: Case) -> Verdict | None:
    """No end, and another boot: the power was cut, or the machine reset or crashed."""
    start = case.run.start
    if case.run.end is not None or not start.boot or start.boot == case.boot:
        return None
    evidence = [
        Evidence(case.last_seen, "the last record; an orderly stop or shutdown would have recorded an end"),
        Evidence(None, f"it ran in boot {start.boot[:8]}, and this is boot {case.boot[:8] or '?'}"),
        *memory_figures(case),
    ]
    hint = "journalctl -b -1 -e shows what the machine said last. Power supply, heat and risers are what to look at."
    sentence = f"{case.name} went down with the machine: a power cut, a reset or a crash of the kernel."
    return Verdict("power-cut", sentence, case.last_seen, evidence=tuple(evidence), hint=hint)


def record_broke_off(case: Case) -> Verdict | None:
    """No end in this boot, and nothing is written any more."""
    if case.run.end is not None:
        return None
    hint = f"systemctl status vllm@{case.name} vllm-safe-record@{case.name}"
    evidence = (Evidence(case.last_seen, "the last record"), *last_lines(case))
    sentence = f"It is not known why {case.name} stopped, or whether it did: its recorder ended before it."
    return Verdict("unknown", sentence, case.last_seen, "", evidence, hint=hint)


def stopped(case: Case) -> Verdict | None:
    """Systemd was asked to stop it. In the same boot no shutdown can have been the reason."""
    if case.end.cause != "stopped":
        return None
    same_boot = case.run.start.boot == case.boot
    who = "a person (or a program) told systemd to" if same_boot else "a person told systemd to, or the machine was shut down or rebooted"
    code = "stopped" if same_boot else "stopped-or-shutdown"
    return Verdict(code, f"{case.name} was stopped: {who}.", case.end.time, "", tuple(said_by_main(case)))


def refused(case: Case) -> Verdict | None:
    """It was never started."""
    if case.end.cause != "refused":
        return None
    hint = f"vllm-safe check   shows all that is in the way; then: systemctl start vllm@{case.name}"
    sentence = f"{case.name} was not started, since it could not have worked: {case.end.reason}"
    return Verdict("refused", sentence, case.end.time, evidence=tuple(said_by_main(case)), hint=hint)


def gave_up(case: Case) -> Verdict | None:
    """It was never started: one automatic restart too many. Why it failed before, the run before it tells (see decide.py)."""
    if case.end.cause != "gave-up":
        return None
    hint = f"vllm-safe why {case.name} --run 2   says why it ended before; then: systemctl start vllm@{case.name}"
    sentence = f"{case.name} was not started once more: {case.end.reason}"
    return Verdict("gave-up", sentence, case.end.time, evidence=tuple(said_by_main(case)), hint=hint)


def no_start(case: Case) -> Verdict | None:
    """The kernel did not even begin it."""
    if case.end.cause != "no-start":
        return None
    hint = f"limits.tasks_max and limits.memory_max of vllm@{case.name}, or the whole machine is out of processes or memory."
    return Verdict(
        "no-start", f"{case.name} was not begun: {case.end.reason}", case.end.time, evidence=tuple(said_by_main(case)), hint=hint
    )


def stalled(case: Case) -> Verdict | None:
    """Nothing moved while it loaded."""
    if case.end.cause != "stall":
        return None
    if _in_vain(case):
        return _waited(case, "stall")
    return _stuck(case, f"{case.name} hung while it loaded ({case.phase or 'starting'}), and was ended: {case.end.reason}", "stall_timeout")


def hung(case: Case) -> Verdict | None:
    """It served, or was about to, and then did not."""
    if case.end.cause != "hang":
        return None
    if _in_vain(case):
        return _waited(case, "hang")
    return _stuck(case, f"{case.name} hung {_when(case)}, and was ended: {case.end.reason}", "hang_timeout")


def start_timeout(case: Case) -> Verdict | None:
    """It went on loading for too long."""
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
        evidence=(*said_by_main(case), *far, *_pressure(case), *last_lines(case)),
        changes=_longer(case, "start_timeout"),
    )


def watchdog(case: Case) -> Verdict | None:
    """Systemd heard nothing of the main process."""
    if case.end.result != "watchdog":
        return None
    sentence = f"{case.name} was killed by systemd's watchdog: its main process was not heard of in time."
    hint = "The machine was starved, or the process was stopped (SIGSTOP)."
    evidence = (*said_by_main(case), *_pressure(case), *memory_figures(case))
    return Verdict("watchdog", sentence, case.end.time, evidence=evidence, hint=hint)


def systemd_timeout(case: Case) -> Verdict | None:
    """Systemd's own limit on a start or a stop."""
    if case.end.result != "timeout":
        return None
    sentence = f"{case.name} was killed by systemd, since its start or stop took longer than allowed."
    return Verdict("timeout", sentence, case.end.time, evidence=(*said_by_main(case), *_pressure(case), *last_lines(case)))


def signalled(case: Case) -> Verdict | None:
    """A signal ended the server or its main process, and none of those who kill for memory sent it."""
    found = _KILLED.search(case.end.reason) if case.end.cause in {"exited", ""} else None
    name = found[1] if found else ""
    if not name and case.end.exit_code in {"killed", "dumped"}:
        name = f"SIG{case.end.exit_status.removeprefix('SIG')}" if case.end.exit_status else "a signal"
    if not name:
        return None
    if name in BY_ITSELF:
        hint = f"coredumpctl info   (if systemd-coredump is installed); journalctl -u vllm@{case.name}"
        return Verdict(
            "crashed", told(case, f"killed by {name}"), case.end.time, evidence=(*said_by_main(case), *last_lines(case)), hint=hint
        )
    sentence = f"{case.name} was killed by {name}, sent by a person or another program: {NOBODY}."
    evidence = (*said_by_main(case), *memory_figures(case))
    if case.of("unread"):
        sentence = f"{case.name} was killed by {name}, and it is not known by whom: the journal could not be read in time."
        hint = "journalctl -k -g 'Killed process'; journalctl -u earlyoom   may still say it."
        return Verdict("signal", sentence, case.end.time, evidence=evidence, hint=hint)
    return Verdict("signal", sentence, case.end.time, evidence=evidence, hint="journalctl --since=-1h _COMM=sudo   may say who ran kill.")


def ended_by_itself(case: Case) -> Verdict | None:
    """It exited, with an error of its own at most."""
    if case.end.cause != "exited":
        return None
    hint = f"journalctl -u vllm@{case.name} has all that it printed."
    evidence = (*error_of(case), *said_by_main(case), *last_lines(case))
    return Verdict("exited", told(case), case.end.time, evidence=evidence, hint=hint)


def unknown(case: Case) -> Verdict:
    """Nothing proves anything."""
    others = [Evidence(event.time, event.text) for event in case.run.events[-8:] if event.kind != "nvidia"]  # see decide.py for those
    evidence = (*said_by_main(case), *others, *memory_figures(case), *last_lines(case))
    hint = f"journalctl -u vllm@{case.name} has all that it printed."
    return Verdict(
        "unknown", f"It is not known why {case.name} stopped; this is what was recorded.", case.end.time, "bad", evidence, hint=hint
    )


def _stuck(case: Case, sentence: str, setting: str) -> Verdict:
    # What is gone for good has a limit of its own (launch/liveness.py): more of another changes nothing.
    longer = _longer(case, setting) if f"({setting})" in case.end.reason else ()
    changes = (*(riser(case) if _workers(case) > 1 else ()), *longer)
    code = "stall" if setting == "stall_timeout" else "hang"
    slow = "; a longer time helps only if it was slow" if longer else ""
    return Verdict(code, sentence, case.end.time, evidence=_signs(case), changes=changes, hint=f"{_stacks(case)}{slow}.")


def _waited(case: Case, code: str) -> Verdict:
    """Processes that wait for each other in vain: no time is long enough."""
    several = _workers(case) > 1
    who = "its workers waited for each other in vain" if several else "its engine waited for its worker in vain"
    changes = _apart(case) if several else ()
    evidence = on_risers(case) if len(changes) > 1 else ""
    way = "" if changes else "NCCL_DEBUG: INFO in its env may say more"
    way = f"profile: pcie-riser sets both, and more ({evidence})" if evidence else way
    hint = f"A longer time cannot help{'; ' + way if way else ''}. {_stacks(case)}."
    sentence = f"{case.name} hung {_when(case)}, and was ended: {who}."
    return Verdict(code, sentence, case.end.time, evidence=_signs(case), changes=changes, hint=hint)


def _in_vain(case: Case) -> bool:
    """Whether its processes waited for each other, as the main process saw, or its log says; not for one that is stopped or gone."""
    return (IN_VAIN in case.end.reason or _says_in_vain(case.run.log)) and not _STOPPED.search(case.end.reason)


def _says_in_vain(log: tuple[str, ...]) -> bool:
    """Whether it said again and again, with little between, that a worker does not answer, and after that was no further."""
    said = [number for number, line in enumerate(log) if WAITS.search(line)]
    again = len(said) >= _AGAIN and said[-1] - said[-_AGAIN] < 2 * _AGAIN
    return again and not any(read_line(line) for line in log[said[-1] :])


def _when(case: Case) -> str:
    if case.was_ready:
        return "while it served"
    return "while it warmed up" if case.end.cause == "hang" else f"while it loaded ({case.phase or 'starting'})"


def _signs(case: Case) -> tuple[Evidence, ...]:
    events = [Evidence(event.time, event.text) for event in case.of(case.end.cause) if event.text != case.end.reason]
    return (*events, *said_by_main(case), *error_of(case), *_pressure(case), *memory_figures(case), *last_lines(case))


def _stacks(case: Case) -> str:
    return f"journalctl -u vllm@{case.name} has the stacks of its threads, where they could be had"


def _apart(case: Case) -> tuple[Change, ...]:
    """What has the cards talk through RAM, as far as it is not so."""
    reduce, direct = case.arg("disable-custom-all-reduce"), case.env("NCCL_P2P_DISABLE")
    reason = "it hangs where cards cannot reach each other's memory"
    changes = [Change(case.path("args.disable-custom-all-reduce"), reduce, "true", reason)] if reduce.lower() != "true" else []
    changes += [Change(case.path("env.NCCL_P2P_DISABLE"), direct, '"1"', "NCCL through RAM, for the same reason")] if direct != "1" else []
    return tuple(changes)


def _pressure(case: Case) -> list[Evidence]:
    last = case.last
    parts = [f"{what} {share:.0%}" for what, share in (("disk", last.io_pressure), ("memory", last.memory_pressure)) if share is not None]
    rate = f"; the disks read {format_size(int(last.disk_read))}/s" if last.disk_read is not None else ""
    return [Evidence(last.time, f"share of time that it waited for: {', '.join(parts)}{rate}")] if parts else []


def _workers(case: Case) -> int:
    sizes = (case.arg(f"{kind}-parallel-size") for kind in ("tensor", "pipeline", "data"))
    return math.prod(int(size) for size in sizes if size.isdecimal() and len(size) < 6)


def _longer(case: Case, setting: str) -> tuple[Change, ...]:
    return case.longer(setting, f"twice the {format_span(case.run.start.times.get(setting, 0.0))} that were not enough")
