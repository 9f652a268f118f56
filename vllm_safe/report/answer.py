"""What a report says above everything else: what `vllm-safe why` answers, as lines of text."""

from __future__ import annotations

from typing import NamedTuple

from vllm_safe.record.run import Run


class Change(NamedTuple):
    """A setting to change: its path in config.yaml, and both values as they are written there."""

    path: str
    old: str
    new: str


class Answer(NamedTuple):
    """The verdict, its evidence with times (None: of the whole run), and what to change."""

    sentence: str
    tone: str = ""  # bad: it failed; good: it runs, or was asked to stop; "" otherwise
    evidence: tuple[tuple[float | None, str], ...] = ()
    changes: tuple[Change, ...] = ()


def answer_of(run: Run) -> Answer:
    """The answer for a run, from what it ended with."""
    end = run.end
    if end is None:
        return Answer("No end is recorded: it runs, or the machine went down under it.")
    sentence = end.reason or f"It ended: systemd says {end.result or 'nothing'} ({end.exit_code} {end.exit_status})."
    return Answer(sentence, "good" if end.cause == "stopped" else "bad")
