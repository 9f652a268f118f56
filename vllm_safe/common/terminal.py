"""Patterns of terminal control sequences (colours, cursor, title), which are removed from a line before it is examined."""

from __future__ import annotations

import re
from collections.abc import Sequence

# ECMA-48: CSI with its parameters, and other escape sequences; xterm's OSC, up to its BEL or ST.
_ESCAPE = r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[ -/]*[0-Z\\^-~])"
ESCAPES = re.compile(_ESCAPE)
ESCAPES_IN_BYTES = re.compile(_ESCAPE.encode())


def last_line(lines: Sequence[str]) -> str:
    """Return the last line that is not empty, without control sequences, or ""."""
    return next((line for line in (ESCAPES.sub("", line).strip() for line in reversed(lines)) if line), "")
