"""The server ended by itself and said what was wrong."""

from __future__ import annotations

import re

from vllm_safe.decide.why.meanings import MEANINGS
from vllm_safe.decide.why.verdict import Case, Evidence, Verdict
from vllm_safe.launch.messages import bare_line

_SHOWN = 300  # characters of a line
_LAST_LINES = 5
_ERROR = re.compile(r"(?:[\w.]+(?:Error|Exception)|Value error|fatal|panic)\b[:,]? ?\S*", re.IGNORECASE)
_POINTS_ELSEWHERE = re.compile(r"See (?:root cause|stack trace)|initialization failed|encountered an issue|leaked \w+ objects")


def by_its_words(case: Case) -> Verdict | None:
    """It said something that is known. Deaths that only follow from another are left to later rules."""
    if case.end.cause not in {"exited", ""} or case.message is None or case.message.code not in MEANINGS:
        return None
    message = case.message
    meaning = MEANINGS[message.code](case, message)
    return Verdict(
        message.code,
        f"{case.name} ended by itself: {meaning.what}.",
        case.end.time,
        evidence=(Evidence(None, f"it said: {message.line[:_SHOWN]}"), *said_by_main(case)),
        changes=meaning.changes,
        hint=meaning.hint,
    )


def engine_died(case: Case) -> Verdict | None:
    """A process of vLLM's died, or its engine could not start: with the last error that names itself."""
    message = case.message
    if case.end.cause not in {"exited", ""} or message is None or message.code not in {"worker-died", "engine-died"}:
        return None
    error = own_error(case.run.log)
    what = f": {error}" if error else ""
    status = message.figures.get("status", "")
    if status.startswith("-"):
        what = f": its process {message.figures['process']} was killed by signal {status[1:]}" + (f"; {error}" if error else "")
    return Verdict(
        message.code,
        f"{case.name} ended because its engine died{what}.",
        case.end.time,
        evidence=(Evidence(None, f"it said: {message.line[:_SHOWN]}"), *said_by_main(case), *last_lines(case)),
        hint=f"journalctl -u vllm@{case.name} has all that it printed.",
    )


def own_error(lines: tuple[str, ...]) -> str:
    """The last error that names itself, and not another as its cause; or ""."""
    for line in reversed([bare_line(line) for line in lines]):
        if _ERROR.match(line) and not _POINTS_ELSEWHERE.search(line):
            return line[:_SHOWN]
    return ""


def said_by_main(case: Case) -> list[Evidence]:
    """What its main process and systemd recorded."""
    end = case.end
    found = [f"vllm-safe saw: {end.reason}"] if end.reason else []
    if end.result:
        found.append(f"systemd: result {end.result}, {end.exit_code} {end.exit_status}".rstrip(" ,"))
    return [Evidence(end.time, text) for text in found]


def last_lines(case: Case) -> list[Evidence]:
    """The end of what the server printed."""
    lines = [line.strip() for line in case.run.log if line.strip()]
    return [Evidence(None, f"it printed: {line[:_SHOWN]}") for line in lines[-_LAST_LINES:]]
