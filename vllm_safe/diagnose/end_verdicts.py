"""Verdicts on ends that the main process, systemd or the next boot recorded: stops, refused starts, signals, unknown causes."""

from __future__ import annotations

import re

from vllm_safe.causes.death_patterns import BY_ITSELF
from vllm_safe.causes.messages import FOLLOWS
from vllm_safe.causes.quote import with_full_stop
from vllm_safe.common.sizes import format_span
from vllm_safe.contract.room_note import ROOM_FOR
from vllm_safe.diagnose.card_figures import drawn_power
from vllm_safe.diagnose.error_verdicts import NOBODY, describe_end, error_evidence, last_lines, launcher_evidence
from vllm_safe.diagnose.kill_verdicts import memory_figures
from vllm_safe.diagnose.verdict import MOMENTS, Case, Evidence, Verdict

_KILLED = re.compile(r"killed by (SIG\w+|signal \d+)")


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
    """Decide whether systemd was asked to stop the model. Within the same boot a shutdown cannot be the reason.

    The main process cannot tell systemd's SIGTERM from that of earlyoom, which may choose it, too, when the server has just been killed.
    """
    by_earlyoom = any(event.time <= case.over_at + MOMENTS for event in case.late("earlyoom"))
    if case.end.cause != "stopped" or by_earlyoom:
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
