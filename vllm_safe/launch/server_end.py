"""Ending a server, and the explanation of an end. Pure."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from typing import NamedTuple

from vllm_safe.contract.launch_file import Launch
from vllm_safe.launch.actions import Action, Instruction, LogLine, SendSignal
from vllm_safe.launch.server_process import CANNOT_RUN, describe_ending

TERM_AGAIN = 2.0  # seconds: vLLM swallows the first SIGTERM while it loads (vllm/utils/network_utils.py), the second one ends it
LOADING_GRACE = 20.0  # seconds, while no request is being answered yet; vLLM needs 9 s after the second SIGTERM
DUMPING = 3.0  # seconds for printing the stacks of all threads
DYING = 2.0  # seconds after SIGKILL; a process that survives them hangs in a driver, and systemd continues to kill it

# Exit statuses before the server was ready for which a second start cannot work: an invalid option (argparse and most others), or a missing
# program.
NEVER_CAN_WORK = (2, 126, CANNOT_RUN)


class Ending:
    """The end of a server: it is asked to stop, or has to print its stacks if it hangs; then it is killed.

    Call `begin` once, then `tick` whenever it is `due`.
    """

    def __init__(self, now: float, grace: float, *, loading: bool, hung: bool) -> None:
        self.hung = hung
        self._term_at = now + TERM_AGAIN if loading and not hung else None
        self._kill_at = now + (DUMPING if hung else min(grace, LOADING_GRACE) if loading else grace)
        self.longest = self._kill_at - now + DYING  # seconds
        self._killed = False

    @property
    def due(self) -> float:
        """The time of the next necessary call of `tick`."""
        return self._kill_at if self._term_at is None else min(self._term_at, self._kill_at)

    def begin(self) -> Action:
        """Return the first action."""
        return Instruction.DUMP if self.hung else SendSignal(signal.SIGTERM)

    def tick(self, now: float) -> list[Action] | None:
        """Return the actions that are due; None if nothing more can be done."""
        if now >= self._kill_at:
            if self._killed:
                return None
            self._killed, self._term_at, self._kill_at = True, None, now + DYING
            lines = [] if self.hung else [LogLine("the server did not exit in time: killing it")]
            return [*lines, Instruction.KILL]
        if self._term_at is not None and now >= self._term_at:
            self._term_at = None
            return [SendSignal(signal.SIGTERM)]
        return []


class Ended(NamedTuple):
    """The facts of an end. head: the first lines of trouble. tail: the last lines. before: see Lifecycle."""

    status: int  # as returned by wait(2)
    head: Sequence[str]
    tail: Sequence[str]
    served: bool  # the server was ready
    before: str = ""


class Explanation(NamedTuple):
    """The explanation of an end. sentence: for people. error: the whole error as the server printed it, or ""."""

    sentence: str
    error: str = ""
    never: bool = False  # a start can never work with this configuration
    again: bool = False  # the previous start ended with the same error


def explain_end(launch: Launch, ended: Ended) -> Explanation:
    """Explain an end by the wait status and the lines of the server: see compose_explanation."""
    try:
        from vllm_safe.launch.end_sentence import compose_explanation  # noqa: PLC0415 - patterns and sentences that are only needed at an end

        return compose_explanation(launch, ended)
    except Exception:  # noqa: BLE001 - the package may have been replaced meanwhile: no error may prevent the report of the end
        never = os.waitstatus_to_exitcode(ended.status) in NEVER_CAN_WORK
        return Explanation(f"{launch.name} exited ({describe_ending(ended.status)}).", never=never)
