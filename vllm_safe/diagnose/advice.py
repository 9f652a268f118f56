"""What is said to do about an error: settings to change, and the rest."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from vllm_safe.causes.messages import Message
from vllm_safe.diagnose.verdict import Case, SettingChange


class Advice(NamedTuple):
    """What to change, and what to do besides."""

    changes: tuple[SettingChange, ...] = ()
    hint: str = ""


Adviser = Callable[[Case, Message], Advice]


def hint_of(hint: str) -> Adviser:
    """What to do, without a setting."""
    return lambda _case, _message: Advice(hint=hint)


def change_argument(case: Case, name: str, new: str, reason: str) -> SettingChange:
    """A change of an option of vLLM."""
    return SettingChange(case.path(f"args.{name}"), case.arg(name), new, reason)


def change_variable(case: Case, name: str, new: str, reason: str) -> SettingChange:
    """A change of a variable."""
    return SettingChange(case.path(f"env.{name}"), case.env(name), new, reason)


def change_profile_to_riser(case: Case) -> SettingChange:
    """The profile for cards on risers."""
    reason = "cards on risers hang when they talk to each other directly: NCCL_P2P_DISABLE=1"
    return SettingChange(case.path("profile"), case.run.start.profile, "pcie-riser", reason)
