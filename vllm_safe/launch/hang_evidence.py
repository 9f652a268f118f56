"""The state of each process of a hung server, as far as /proc shows it to the same user; and signals to all of them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from vllm_safe.common.sizes import format_size
from vllm_safe.launch.processes import Process

_MOST = 64  # processes: several times the number that eight GPUs need


def describe_process_states(processes: Sequence[Process]) -> Iterator[str]:
    """Yield a line for each process.

    Example: "VLLM::Worker_TP (123): state S, in futex_wait_queue, system call 202, 12.3 s of CPU time, 430 MiB resident".
    """
    for process in processes[:_MOST]:
        parts = [f"state {process.state}"]
        if (where := _word(process.pid, "wchan")) not in {"", "0"}:
            parts.append(f"in {where}")
        if (call := _word(process.pid, "syscall")) and call != "running":
            parts.append(f"system call {call}")
        parts += [f"{process.cpu:.1f} s of CPU time", f"{format_size(process.resident)} resident"]
        yield f"{process.comm} ({process.pid}): {', '.join(parts)}"


def signal_all(processes: Sequence[Process], *numbers: signal.Signals) -> None:
    """Send these signals to each process. Errors are ignored."""
    for process in processes:
        for number in numbers:
            with suppress(OSError):
                os.kill(process.pid, number)


def _word(pid: int, name: str) -> str:
    try:
        return Path(f"/proc/{pid}/{name}").read_text(encoding="utf-8", errors="replace").partition(" ")[0].strip()
    except OSError:
        return ""
