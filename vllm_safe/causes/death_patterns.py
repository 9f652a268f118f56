"""Patterns for deaths that only follow from another one: processes of the server report that another process died.

Every other pattern takes precedence, since it says more.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping

from vllm_safe.causes.patterns import MAYBE, Pattern

DEATHS: tuple[Pattern, ...] = (
    Pattern(
        "worker-died",
        r"Worker proc (?P<process>\S+) died unexpectedly \(exit code: (?:-(?P<number>\d+)|(?P<status>\d+))\)|"
        r"Failed core proc\(s\): \{'(?P<engine>[\w-]+)': -(?P<signal>\d+)|"
        r"(?:[Ee]xit ?code)[:=]? ?\(?-(?P<negative>[1-9]\d?)\b|"
        r"(?<!\[)\bsignal:? ?\(?(?P<word>\d+|SIG[A-Z]+|killed|segmentation fault|illegal instruction|aborted|bus error)\b|"
        r"(?:sent|[Kk]illed by|died (?:of|from|with)) (?P<name>SIG[A-Z]+)|"
        r"exit(?:ed)?(?: with)? (?:exit )?(?:code|status):? (?P<shell>13[2-9])\b",
        MAYBE,
        "vllm/v1/executor/multiproc_executor.py:316; vllm/v1/engine/utils.py:1432; torch: distributed/elastic; sglang: engine.py; "
        "text-generation-inference: launcher; Go: os/exec; gunicorn: arbiter.py",
        "killed",
    ),
    Pattern(
        "worker-died",
        r"Worker proc (?P<process>\S+) died unexpectedly \(exit code: None\)|"  # its status is not known yet
        r"WorkerProc (?:initialization )?failed|^RuntimeError: Executor failed|^EOFError:?$|terminated abruptly while the future|"
        r"^(?:[\w.]+\.)?ChildFailedError\b",
        MAYBE,
        "vllm/v1/executor/multiproc_executor.py:399, 790; vllm/v1/engine/core.py:1702; "
        "CPython: concurrent/futures/process.py; torch: distributed/elastic",
        "silent",
    ),
    Pattern(
        "engine-died",
        r"Engine core (?:initialization failed|process \S+ died unexpectedly)|EngineCore encountered a(?:n issue| fatal error)|"
        r"EngineCore failed to start|^(?:[\w.]+\.)?EngineDeadError",
        MAYBE,
        "vllm/v1/engine/utils.py:1432; vllm/v1/engine/exceptions.py:16; vllm/v1/engine/core.py:1512; vllm/v1/utils.py:592",
    ),
)
BY_ITSELF = frozenset({"SIGSEGV", "SIGABRT", "SIGBUS", "SIGILL", "SIGFPE", "SIGTRAP", "SIGSYS"})  # raised by a crash of the process itself
_ASKED = {"SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT"}  # sent to the remaining processes once one has ended
_WORDS = {
    "killed": "SIGKILL",
    "segmentation fault": "SIGSEGV",
    "illegal instruction": "SIGILL",
    "aborted": "SIGABRT",
    "bus error": "SIGBUS",
}


def describe_death(kind: str, figures: Mapping[str, str]) -> str:
    """Describe which process died, and of which signal or status if that is known: the end of a sentence, without a full stop."""
    name = figures.get("process") or figures.get("engine")
    who = f"its process {name}" if name else "one of its processes"
    if by := signal_of(figures):
        return f"{who} crashed ({by})" if by in BY_ITSELF else f"{who} was killed by {by}"
    if "status" in figures:
        return f"{who} exited without an error message (exit status {figures['status']})"
    if not name:
        who = "one of its workers" if kind in {"killed", "silent"} else "its engine"
    return f"{who} died without an error message"


def signal_of(figures: Mapping[str, str]) -> str:
    """Return the name of the signal that a process died of, such as "SIGKILL", or "" where none is known."""
    found = next((figures[name] for name in ("number", "signal", "negative", "word", "name", "shell") if name in figures), "")
    name = _WORDS.get(found, found)
    if found.isdecimal():
        number = int(found) - 128 if "shell" in figures else int(found)
        try:
            name = signal.Signals(number).name
        except ValueError:  # a real-time signal
            name = f"signal {number}"
    return "" if name in _ASKED else name
