"""Verdicts on ends that the main process, systemd or the next boot recorded: stops, refused starts, hangs, signals, unknown causes."""

from __future__ import annotations

import math
import re

from vllm_safe.causes.death_patterns import BY_ITSELF
from vllm_safe.causes.messages import FOLLOWS
from vllm_safe.causes.quote import with_full_stop
from vllm_safe.common.sizes import format_size, format_span
from vllm_safe.contract.room_note import ROOM_FOR
from vllm_safe.diagnose.advice import change_profile_to_riser, riser_evidence
from vllm_safe.diagnose.card_figures import drawn_power
from vllm_safe.diagnose.error_verdicts import NOBODY, describe_end, error_evidence, last_lines, launcher_evidence
from vllm_safe.diagnose.kill_verdicts import memory_figures
from vllm_safe.diagnose.verdict import Case, Evidence, SettingChange, Verdict
from vllm_safe.launch.load_progress import WAITS
from vllm_safe.launch.loading import IN_VAIN
from vllm_safe.launch.phases import read_line

_KILLED = re.compile(r"killed by (SIG\w+|signal \d+)")

_AGAIN = 3  # lines, one a minute, which report that a worker does not respond: fewer of them are a slow step
_STOPPED = re.compile(r"its process .* is (?:stopped|gone)")  # the wording of launch/loading.py and launch/liveness.py


def running(case: Case) -> Verdict | None:
    """Decide whether the model has not stopped."""
    if not case.is_running:
        return None
    phase = {"ready": "is serving", "": "is running"}.get(case.phase, f"is starting ({case.phase})")
    since = format_span(max(0.0, case.now - case.run.start.time))
    return Verdict("running", f"{case.name} {phase}; it was started {since} ago.", case.run.start.time, "good", (*memory_figures(case),))


def machine_went_down(case: Case) -> Verdict | None:
    """Decide whether the machine went down: no end was recorded, and the present boot is another one."""
    start = case.run.start
    if case.run.end is not None or not start.boot or start.boot == case.boot:
        return None
    evidence = [
        Evidence(case.last_seen, "the last record; a regular stop or shutdown would have recorded an end"),
        *drawn_power(case),
        Evidence(None, f"it ran in boot {start.boot[:8]}; the current boot is {case.boot[:8] or '?'}"),
        *memory_figures(case),
    ]
    hint = "journalctl -b -1 -e shows the last messages of that boot. Check the power supply, the heat and the risers."
    sentence = f"{case.name} went down with the machine: a power cut, a reset or a crash of the kernel."
    return Verdict("power-cut", sentence, case.last_seen, evidence=tuple(evidence), hint=hint)


def record_broke_off(case: Case) -> Verdict | None:
    """Decide whether the record broke off: no end was recorded in this boot, and nothing is written any more."""
    if case.run.end is not None:
        return None
    hint = f"systemctl status vllm@{case.name} vllm-safe-record@{case.name}"
    evidence = (Evidence(case.last_seen, "the last record"), *last_lines(case))
    sentence = f"It is not known why {case.name} stopped, or whether it did: its recorder ended first."
    return Verdict("unknown", sentence, case.last_seen, "", evidence, hint=hint)


def stopped(case: Case) -> Verdict | None:
    """Decide whether systemd was asked to stop the model. Within the same boot a shutdown cannot be the reason."""
    if case.end.cause != "stopped":
        return None
    same_boot = case.run.start.boot == case.boot
    who = (
        "a person or a program asked systemd to stop it"
        if same_boot
        else "a person asked systemd to stop it, or the machine was shut down or rebooted"
    )
    code = "stopped" if same_boot else "stopped-or-shutdown"
    return Verdict(code, f"{case.name} was stopped: {who}.", case.end.time, "", tuple(launcher_evidence(case)))


def made_room(case: Case) -> Verdict | None:
    """Decide whether the model was stopped so that another one could start."""
    if case.end.cause != "room":
        return None
    other = case.end.reason.removeprefix(ROOM_FOR).partition(":")[0]
    sentence = f"{case.name} was stopped to make room for {other}."
    return Verdict("made-room", sentence, case.end.time, "good", tuple(launcher_evidence(case)), hint=_next_start(case))


def idle(case: Case) -> Verdict | None:
    """Decide whether the main process stopped a model on demand that nobody asked for."""
    if case.end.cause != "idle":
        return None
    sentence = f"{case.name} was {case.end.reason}."
    return Verdict("idle", sentence, case.end.time, "good", tuple(launcher_evidence(case)), hint=_next_start(case))


def _next_start(case: Case) -> str:
    return f"The next request starts it again. To keep it up until it is stopped: systemctl start vllm@{case.name}"


def refused(case: Case) -> Verdict | None:
    """Decide whether the checks before the start refused it."""
    if case.end.cause != "refused":
        return None
    hint = f"vllm-safe check   shows everything that prevents a start; then: systemctl start vllm@{case.name}"
    sentence = f"{case.name} was not started: {case.end.reason}"
    return Verdict("refused", sentence, case.end.time, evidence=tuple(launcher_evidence(case)), hint=hint)


def gave_up(case: Case) -> Verdict | None:
    """Decide whether it was not started because of too many automatic restarts. The run before shows why it failed (see diagnosis.py)."""
    if case.end.cause != "gave-up":
        return None
    hint = f"vllm-safe why {case.name} --run 2   shows why it ended before; then: systemctl start vllm@{case.name}"
    sentence = f"{case.name} was not restarted again: {case.end.reason}"
    return Verdict("gave-up", sentence, case.end.time, evidence=tuple(launcher_evidence(case)), hint=hint)


def no_start(case: Case) -> Verdict | None:
    """Decide whether the kernel refused to start its process."""
    if case.end.cause != "no-start":
        return None
    hint = f"Check limits.tasks_max and limits.memory_max of vllm@{case.name}; or the whole machine has no processes or memory left."
    return Verdict(
        "no-start",
        f"{case.name} was not started: {case.end.reason}",
        case.end.time,
        evidence=tuple(launcher_evidence(case)),
        hint=hint,
    )


def another_node(case: Case) -> Verdict | None:
    """Decide whether the model ended because of another machine that serves it, too."""
    what = {"node": "another machine", "network": "the connection to another machine"}.get(case.end.cause)
    if what is None:
        return None
    sentence = f"{case.name} ended here because of {what}: {with_full_stop(case.end.reason)}"
    hint = f"On that machine: vllm-safe why {case.name}"
    return Verdict(case.end.cause, sentence, case.end.time, evidence=tuple(launcher_evidence(case)), hint=hint)


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


def signalled(case: Case) -> Verdict | None:
    """Decide whether a signal ended the server or its main process that was not sent because of memory."""
    found = _KILLED.search(case.end.reason) if case.end.cause in {"exited", ""} else None
    name = found[1] if found else ""
    if not name and case.end.exit_code in {"killed", "dumped"}:
        name = f"SIG{case.end.exit_status.removeprefix('SIG')}" if case.end.exit_status else "a signal"
    if not name:
        return None
    if name in BY_ITSELF:
        hint = f"See coredumpctl info (if systemd-coredump is installed) and journalctl -u vllm@{case.name}"
        return Verdict(
            "crashed",
            describe_end(case, f"killed by {name}"),
            case.end.time,
            evidence=(*launcher_evidence(case), *last_lines(case)),
            hint=hint,
        )
    if case.message and case.message.code not in FOLLOWS and not case.was_ready:
        evidence = (*error_evidence(case), *launcher_evidence(case))
        hint = "Correct the cause of the error. Some servers end themselves with SIGKILL after an error (SGLang does)."
        return Verdict("exited", describe_end(case, f"killed by {name}"), case.end.time, evidence=evidence, hint=hint)
    sentence = f"{case.name} was killed by {name}, sent by a person or another program: {NOBODY}."
    evidence = (*launcher_evidence(case), *memory_figures(case))
    if case.of("unread"):
        sentence = f"{case.name} was killed by {name}; the sender is not known, since the journal could not be read in time."
        hint = "journalctl -k -g 'Killed process'; journalctl -u earlyoom   may still show the sender."
        return Verdict("signal", sentence, case.end.time, evidence=evidence, hint=hint)
    return Verdict("signal", sentence, case.end.time, evidence=evidence, hint="journalctl --since=-1h _COMM=sudo   may show who ran kill.")


def ended_by_itself(case: Case) -> Verdict | None:
    """Decide whether it exited by itself, with or without an error of its own."""
    if case.end.cause != "exited":
        return None
    hint = f"journalctl -u vllm@{case.name} shows its whole output."
    evidence = (*error_evidence(case), *launcher_evidence(case), *last_lines(case))
    return Verdict("exited", describe_end(case), case.end.time, evidence=evidence, hint=hint)


def unknown(case: Case) -> Verdict:
    """Return the verdict on a run of which no record shows why it ended."""
    others = [Evidence(event.time, event.text) for event in case.run.events[-8:] if event.kind != "nvidia"]  # diagnosis.py adds those
    evidence = (*launcher_evidence(case), *others, *memory_figures(case), *last_lines(case))
    hint = f"journalctl -u vllm@{case.name} shows its whole output."
    return Verdict(
        "unknown", f"It is not known why {case.name} stopped; all that was recorded follows.", case.end.time, "bad", evidence, hint=hint
    )


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
    reason = "it hangs where the cards have no peer access to each other's memory"
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
