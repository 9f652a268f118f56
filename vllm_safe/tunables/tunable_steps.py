"""Steps on kernel tunables: what each had is written down before it is changed, and that is what is restored, whoever asks.

The notes need no configuration, outlive whoever was killed half-way, and go with the next boot, as the changes do.

Nothing is changed while anybody's memory is taken back: a kernel that switches its LRU may find both the old and the new one empty for a
moment, and a container at its limit is then killed for nothing (kernel commit a6a8c087dc, of 2026). Beside no model it is mostly quiet.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vllm_safe.common import paths
from vllm_safe.common.errors import Failure
from vllm_safe.common.file_steps import RemoveFile, WriteFile
from vllm_safe.common.kernfs import MEMORY_PRESSURE, parse_stall, read_kernel_file

if TYPE_CHECKING:
    from vllm_safe.common.steps import Step

_KERNELS = "/sys/"  # where the kernel's files are; a note of anything else is none of ours


@dataclass(frozen=True)
class AwaitCalm:
    """Wait for `calm` seconds in a row in which no memory was taken back, for at most `patience` seconds. Without PSI nobody can tell."""

    calm: float = 2.5  # the kernel adds up every two seconds (PSI_FREQ)
    patience: float = 30.0

    def describe(self) -> str:
        """The step in one line."""
        return f"wait until no memory is taken back, at most {self.patience:g} s"

    def run(self) -> None:
        """Failure when it goes on."""
        end, before = time.monotonic() + self.patience, _stalled()
        while time.monotonic() < end:
            time.sleep(self.calm)
            if (now := _stalled()) == before:
                return
            before = now
        what = f"the machine has been short of memory for {self.patience:g} s: the kernel tunables stay as they are"
        raise Failure(what, hint="A model runs without them too. Later: systemctl restart vllm-safe-tunables")


@dataclass(frozen=True)
class SetTunable:
    """Write a value to a file of the kernel's, which is there: none is made."""

    path: str
    value: str

    def describe(self) -> str:
        """The step in one line."""
        return f"set {self.path} to {self.value}"

    def run(self) -> None:
        """Failure if the kernel refuses, or has no such file."""
        try:
            with Path(self.path).open("r+", encoding="ascii") as file:
                file.write(self.value)
        except OSError as error:
            raise Failure(f"cannot set {self.path} to {self.value}: {error.strerror}", hint="See: vllm-safe check") from error


def tunables_steps(wanted: Mapping[str, str], there: Mapping[str, str], notes: Path = paths.TUNABLES) -> tuple[Step, ...]:
    """The steps from what is `there` to what is `wanted`."""
    changed = {path: value for path, value in wanted.items() if there[path] != value}
    if not changed:
        return ()
    before = {path: there[path] for path in changed} | _noted(notes)  # what was noted first is what was there before us
    text = "".join(f"{path} {value}\n" for path, value in before.items())
    return (AwaitCalm(), WriteFile(notes, text), *(SetTunable(path, value) for path, value in changed.items()))


def undo_tunables_steps(notes: Path = paths.TUNABLES) -> tuple[Step, ...]:
    """The steps back to what was there before the first change."""
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
