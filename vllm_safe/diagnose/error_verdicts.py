"""Verdicts on servers that ended by themselves and printed an error.

launch/end_sentence.py explains the error, in the same words as in Status: and the journal.
"""

from __future__ import annotations

import re

from vllm_safe.causes.death_patterns import signal_of
from vllm_safe.causes.messages import FOLLOWS, Message
from vllm_safe.causes.quote import quote_error
from vllm_safe.diagnose.error_meanings import advise
from vllm_safe.diagnose.verdict import Case, Evidence, Verdict
from vllm_safe.launch.end_sentence import About, end_sentence

NOBODY = "the kernel's OOM killer, earlyoom and the vllm-safe guard recorded no kill"
_LAST_LINES = 5
_ENDING = re.compile(r"\((exit status \d+|killed by \w+(?: \d+)?)\)")


def known_error(case: Case) -> Verdict | None:
    """Decide whether it printed a known error. Errors that only follow from another death are left to later rules."""
    message = case.message
    if case.end.cause not in {"exited", ""} or message is None or not message.code or message.code in FOLLOWS:
        return None
    advice = advise(case, message)
    evidence = (*error_evidence(case), *launcher_evidence(case))
    return Verdict(message.code, describe_end(case), case.end.time, evidence=evidence, changes=advice.changes, hint=advice.hint)


def engine_died(case: Case) -> Verdict | None:
    """Decide whether a process of vLLM died, or its engine could not start, without an error that shows the cause."""
    message = case.message
    if case.end.cause not in {"exited", ""} or message is None or message.code not in FOLLOWS:
        return None
    evidence = (*error_evidence(case), *launcher_evidence(case), *last_lines(case))
    return Verdict(message.code, describe_end(case), case.end.time, evidence=evidence, hint=_who(case, message))


def _who(case: Case, message: Message) -> str:
    """Return where to look for who killed one of its processes. The rules before this one found no sender."""
    signal = signal_of(message.figures)
    if signal == "SIGKILL" and case.of("unread"):
        return "journalctl -k -g 'Killed process'; journalctl -u earlyoom   may show who killed it: the journal could not be read in time."
    if signal == "SIGKILL":
        return f"{NOBODY[0].upper()}{NOBODY[1:]}: a person, another program or the server itself sent the signal."
    if signal == "SIGBUS":
        return "A page could not be provided: /dev/shm is full (the unit has its own, half of the RAM), or a file is on a failing disk."
    printed = f"journalctl -u vllm@{case.name} shows its whole output."
    if message.kind == "silent" and not case.of("unread"):
        return f"A process that is killed prints nothing, but {NOBODY}. {printed}"
    return printed


def describe_end(case: Case, ending: str = "") -> str:
    """Return the sentence of the main process about the end."""
    found = _ENDING.search(case.end.reason)
    how = ending or (found[1] if found else f"exit status {case.end.exit_status or '?'}")
    about = About(case.name, case.was_ready, case.run.start.command, case.run.start.health)
    return end_sentence(about, case.message, how, case.run.log)


def error_evidence(case: Case) -> list[Evidence]:
    """Return the cause in the server's own words."""
    return [Evidence(None, f"server error: {quote_error(case.message.line, command=case.run.start.command)}")] if case.message else []


def launcher_evidence(case: Case) -> list[Evidence]:
    """Return what its main process and systemd recorded."""
    end = case.end
    found = [f"vllm-safe: {end.reason}"] if end.reason else []
    if end.result:
        found.append(f"systemd: result {end.result}, {end.exit_code} {end.exit_status}".rstrip(" ,"))
    return [Evidence(end.time, text) for text in found]


def last_lines(case: Case) -> list[Evidence]:
    """Return the last lines that the server printed."""
    lines = [line.strip() for line in case.run.log if line.strip()]
    return [Evidence(None, f"server log: {quote_error(line, command=case.run.start.command)}") for line in lines[-_LAST_LINES:]]
