"""Steps: the only values that may touch the machine. A plan is a tuple of them; --dry-run prints the same tuple."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol


class Step(Protocol):
    """One change of the machine."""

    def describe(self) -> str:
        """The step in one line, in the imperative: "write /run/vllm-safe/launch/qwen72b.json"."""
        ...

    def run(self) -> None:
        """Do it. Safe to run again after an interruption. Raises Failure with a reason and a way out."""
        ...


def carry_out(steps: Iterable[Step], *, dry_run: bool, say: Callable[[str], None] = print) -> None:
    """Run the steps in order, or with `dry_run` only say them."""
    for step in steps:
        if dry_run:
            say(f"would {step.describe()}")
        else:
            step.run()
