"""What a check found: the same values are lines of `vllm-safe check` and reasons to refuse a start."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from vllm_safe.common.printable_text import printable


class Level(StrEnum):
    """How bad it is."""

    PASS = "pass"  # noqa: S105 - the word of a checklist, no password
    WARN = "warn"  # it runs, but less safely or less well than it could
    FAIL = "fail"  # a start can never work until somebody changes something


@dataclass(frozen=True)
class Finding:
    """`what` is the case, in one line, and `do_next`: the way out, in one line, or "" where there is nothing to do."""

    level: Level
    what: str
    do_next: str = ""


def passed(what: str) -> Finding:
    """As it should be."""
    return Finding(Level.PASS, printable(what))


def warned(what: str, do_next: str) -> Finding:
    """Works, with a drawback."""
    return Finding(Level.WARN, printable(what), printable(do_next))


def failed(what: str, do_next: str) -> Finding:
    """Cannot work."""
    return Finding(Level.FAIL, printable(what), printable(do_next))
