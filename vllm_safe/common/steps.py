"""Steps: the only objects that may change the machine. A plan is a tuple of steps; --dry-run prints the same tuple."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol


class Step(Protocol):
    """One change to the machine."""

    def describe(self) -> str:
        """Describe the step in one line, in the imperative: "write /run/vllm-safe/launch/qwen72b.json"."""
        ...

    def run(self) -> None:
        """Carry out the step. It can be run again after an interruption. Raises Failure with a reason and a hint."""
        ...


def carry_out(steps: Iterable[Step], *, dry_run: bool, say: Callable[[str], None] = print) -> None:
    """Run the steps in order; with `dry_run`, only print what each would do."""
    for step in steps:
        if dry_run:
            say(f"would {step.describe()}")
        else:
            step.run()
