"""Steps on kernel tunables. The previous value of each is saved before a change, and restored later, whoever asks for it.

The saved values need no configuration, survive a process that was killed half-way, and are gone after the next boot, as the changes are.

Nothing is changed while the kernel reclaims memory. A kernel that switches its LRU can find both the old and the new one empty for a
moment, and then kills a container that is at its limit for nothing (kernel commit a6a8c087dc, of 2026). Without a model, a machine
mostly reclaims no memory.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vllm_safe.common import paths
from vllm_safe.common.errors import Failure
from vllm_safe.common.file_steps import RemoveFile, WriteFile
from vllm_safe.common.kernfs import MEMORY_PRESSURE, parse_stall, read_kernel_file
from vllm_safe.common.steps import Step

_KERNELS = "/sys/"  # the folder of the kernel's files; a saved value for any other path was not written by these steps


@dataclass(frozen=True)
class AwaitCalm:
    """Wait for `calm` seconds in a row without memory reclaim, for at most `patience` seconds.

    Without PSI in the kernel this cannot be observed, and the step succeeds after `calm` seconds.
    """

    calm: float = 2.5  # longer than the two seconds after which the kernel updates its averages (PSI_FREQ)
    patience: float = 30.0

    def describe(self) -> str:
        """Describe the step in one line."""
        return f"wait until the kernel reclaims no memory, at most {self.patience:g} s"

    def run(self) -> None:
        """Wait. Raises Failure if the kernel still reclaims memory after `patience` seconds."""
        end, before = time.monotonic() + self.patience, _stalled()
        while time.monotonic() < end:
            time.sleep(self.calm)
            if (now := _stalled()) == before:
                return
            before = now
        what = f"the machine has been short of memory for {self.patience:g} s; the kernel tunables were not changed"
        raise Failure(what, hint="A model also runs without them. To try again: systemctl restart vllm-safe-tunables")


@dataclass(frozen=True)
class SetTunable:
    """Write a value to an existing file of the kernel. A missing file is not created."""

    path: str
    value: str

    def describe(self) -> str:
        """Describe the step in one line."""
        return f"set {self.path} to {self.value}"

    def run(self) -> None:
        """Write the value. Raises Failure if the kernel refuses it or does not have the file."""
        try:
            with Path(self.path).open("r+", encoding="ascii") as file:
                file.write(self.value)
        except OSError as error:
            raise Failure(f"cannot set {self.path} to {self.value}: {error.strerror}", hint="See: vllm-safe check") from error


def tunables_steps(wanted: Mapping[str, str], there: Mapping[str, str], notes: Path = paths.TUNABLES) -> tuple[Step, ...]:
    """Return the steps from the current values `there` to the `wanted` ones."""
    changed = {path: value for path, value in wanted.items() if there[path] != value}
    if not changed:
        return ()
    before = {path: there[path] for path in changed} | _noted(notes)  # the value that was saved first is that from before any change
    text = "".join(f"{path} {value}\n" for path, value in before.items())
    return (AwaitCalm(), WriteFile(notes, text), *(SetTunable(path, value) for path, value in changed.items()))


def undo_tunables_steps(notes: Path = paths.TUNABLES) -> tuple[Step, ...]:
    """Return the steps that restore the values from before the first change."""
    before = _noted(notes)
    return (AwaitCalm(), *(SetTunable(path, value) for path, value in before.items()), RemoveFile(notes)) if before else ()


def _stalled() -> int | None:
    """Return the microseconds since boot in which something waited for memory or took some back; None without PSI."""
    return parse_stall(read_kernel_file(MEMORY_PRESSURE), "some")


def _noted(notes: Path) -> dict[str, str]:
    try:
        lines = [line.split() for line in notes.read_text().splitlines()]
    except (OSError, ValueError):
        return {}
    return {words[0]: words[1] for words in lines if len(words) == 2 and words[0].startswith(_KERNELS)}
