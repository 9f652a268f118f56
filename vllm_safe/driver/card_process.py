"""Programs that call NVML, each in a process of its own: a hung card can block a call for ever."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

_LONGEST = 1 << 20  # bytes of an answer that are read
PYTHON = (sys.executable, "-I", "-B")


class CardHungError(Exception):
    """The program did not answer in time."""


def ask_card_program(command: tuple[str | Path, ...], seconds: float) -> dict[str, Any] | None:
    """Run a program that prints an object of JSON, and return the object; None if it printed none, because the library crashed.

    Raises CardHungError. A process that hangs in the kernel cannot be killed, and is not waited for.
    """
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        output, _ = child.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        child.kill()
        if child.stdout:
            child.stdout.close()
        with suppress(subprocess.TimeoutExpired):
            child.wait(1.0)
        raise CardHungError from None
    with suppress(ValueError):
        answer = json.loads(output[:_LONGEST])
        return answer if isinstance(answer, dict) else None
    return None
