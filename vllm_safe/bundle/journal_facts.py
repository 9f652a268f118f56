"""The end of the journal, as far as it is about one model: its units, and the kernel's messages about GPUs and lack of memory."""

from __future__ import annotations

from typing import NamedTuple

from vllm_safe.common.program_output import try_program_output

_UNITS = ("vllm@{}", "vllm-safe-prepare@{}", "vllm-safe-record@{}", "vllm-safe-swap", "vllm-safe-nvidia", "vllm-safe-tunables")
_UNITS_ALWAYS = ("vllm-safe-guard", "vllm-safe-protect", "earlyoom")
_KERNEL = "NVRM|nvidia|AER: |PCIe Bus Error|oom-kill|[Oo]ut of memory|Killed process|blocked for more than"
_LINES = 400
_PATIENCE = 30.0  # seconds: a journal on a hard disk is slow


class JournalTail(NamedTuple):
    """Lines of the journal. whole: whether it could be read to its end."""

    text: str
    whole: bool = True


def read_unit_journal(name: str) -> JournalTail:
    """Read the last lines about a model and what watches it."""
    units = [f"--unit={unit.format(name)}" for unit in (*_UNITS, *_UNITS_ALWAYS)]
    return _read(*units)


def read_kernel_journal() -> JournalTail:
    """Read the last messages of the kernel in this boot about GPUs, their slots and lack of memory."""
    return _read("--dmesg", f"--grep={_KERNEL}")


def _read(*which: str) -> JournalTail:
    command = ["journalctl", "--quiet", "--no-pager", "--no-hostname", "--output=short-iso", f"--lines={_LINES}", *which]
    return JournalTail(*try_program_output(command, timeout=_PATIENCE))
