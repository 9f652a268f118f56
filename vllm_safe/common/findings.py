"""Results of checks. The same values are the lines of `vllm-safe check` and the reasons to refuse a start."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from vllm_safe.common.printable_text import printable


class Level(StrEnum):
    """The severity of a finding."""

    PASS = "pass"  # noqa: S105 - a level, not a password
    WARN = "warn"  # the model runs, but less safely or less well than it could
    FAIL = "fail"  # a start can never work until somebody changes something


@dataclass(frozen=True)
class Finding:
    """One result of a check. `what`: the fact, in one line. `do_next`: what to do, in one line, or "" where nothing is to be done."""

    level: Level
    what: str
    do_next: str = ""


def passed(what: str) -> Finding:
    """Return a finding of level PASS: all is well."""
    return Finding(Level.PASS, printable(what))


def warned(what: str, do_next: str) -> Finding:
    """Return a finding of level WARN: it works, with a drawback."""
    return Finding(Level.WARN, printable(what), printable(do_next))


def failed(what: str, do_next: str) -> Finding:
    """Return a finding of level FAIL: it cannot work."""
    return Finding(Level.FAIL, printable(what), printable(do_next))
