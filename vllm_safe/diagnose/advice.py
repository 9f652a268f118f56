"""What is said to do about an error: settings to change, and the rest."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from vllm_safe.causes.messages import Message
from vllm_safe.diagnose.verdict import Case, Change


class Advice(NamedTuple):
    """What to change, and what to do besides."""

    changes: tuple[Change, ...] = ()
    hint: str = ""


Adviser = Callable[[Case, Message], Advice]


def do(hint: str) -> Adviser:
    """What to do, without a setting."""
    return lambda _case, _message: Advice(hint=hint)


def arg(case: Case, name: str, new: str, reason: str) -> Change:
    """A change of an option of vLLM."""
    return Change(case.path(f"args.{name}"), case.arg(name), new, reason)


def env(case: Case, name: str, new: str, reason: str) -> Change:
    """A change of a variable."""
    return Change(case.path(f"env.{name}"), case.env(name), new, reason)


def riser(case: Case) -> Change:
    """The profile for cards on risers."""
    reason = "cards on risers hang when they talk to each other directly: NCCL_P2P_DISABLE=1"
    return Change(case.path("profile"), case.run.start.profile, "pcie-riser", reason)
