"""Advice on an error: settings to change, and a hint about everything else."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from vllm_safe.causes.messages import Message
from vllm_safe.diagnose.verdict import Case, SettingChange


class Advice(NamedTuple):
    """Settings to change, and a hint about what else to do."""

    changes: tuple[SettingChange, ...] = ()
    hint: str = ""


Adviser = Callable[[Case, Message], Advice]


def hint_of(hint: str) -> Adviser:
    """Return an adviser that gives only a hint."""
    return lambda _case, _message: Advice(hint=hint)


def change_argument(case: Case, name: str, new: str, reason: str) -> SettingChange:
    """Return a change of an option of `vllm serve`."""
    return SettingChange(case.path(f"args.{name}"), case.arg(name), new, reason)


def change_variable(case: Case, name: str, new: str, reason: str) -> SettingChange:
    """Return a change of an environment variable of the server."""
    return SettingChange(case.path(f"env.{name}"), case.env(name), new, reason)


def change_profile_to_riser(case: Case) -> SettingChange:
    """Return the change to the profile for cards on PCIe risers."""
    reason = "cards on risers hang with peer-to-peer transfers: the profile sets NCCL_P2P_DISABLE=1"
    return SettingChange(case.path("profile"), case.run.start.profile, "pcie-riser", reason)
