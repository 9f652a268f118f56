"""How a server is ended, and what its end means: pure."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from typing import NamedTuple

from vllm_safe.contract.launch_file import Launch
from vllm_safe.launch.actions import Action, Instruction, LogLine, SendSignal
from vllm_safe.launch.server_process import CANNOT_RUN, describe_ending

TERM_AGAIN = 2.0  # vLLM swallows the first SIGTERM while it loads (vllm/utils/network_utils.py); the second ends it
LOADING_GRACE = 20.0  # nothing is being answered yet; vLLM needs 9 s after the second SIGTERM
DUMPING = 3.0  # to print the stacks of all threads
DYING = 2.0  # after SIGKILL; what does not die by then hangs in a driver, and systemd goes on trying

# Before it ever served: a wrong option (argparse, and most others), or no such program. Tried again, it would say the same.
NEVER_CAN_WORK = (2, 126, CANNOT_RUN)


class Ending:
    """Asks a server to end, or has a hung one say where it hangs; then kills it. `begin` once, then `tick` whenever it is `due`."""

    def __init__(self, now: float, grace: float, *, loading: bool, hung: bool) -> None:
        self.hung = hung
        self._term_at = now + TERM_AGAIN if loading and not hung else None
        self._kill_at = now + (DUMPING if hung else min(grace, LOADING_GRACE) if loading else grace)
        self.longest = self._kill_at - now + DYING  # seconds
        self._killed = False

    @property
    def due(self) -> float:
        """When `tick` must be called next."""
        return self._kill_at if self._term_at is None else min(self._term_at, self._kill_at)

    def begin(self) -> Action:
        """The first step."""
        return Instruction.DUMP if self.hung else SendSignal(signal.SIGTERM)

    def tick(self, now: float) -> list[Action] | None:
        """Time has passed; None when nothing more can be done."""
        if now >= self._kill_at:
            if self._killed:
                return None
            self._killed, self._term_at, self._kill_at = True, None, now + DYING
            said = [] if self.hung else [LogLine("the server has not ended in time: killing it")]
            return [*said, Instruction.KILL]
        if self._term_at is not None and now >= self._term_at:
            self._term_at = None
            return [SendSignal(signal.SIGTERM)]
        return []


class Ended(NamedTuple):
    """How a server ended. head: the beginning of its trouble; tail: its last lines; before: see Lifecycle."""

    status: int  # as wait(2) has it
    head: Sequence[str]
    tail: Sequence[str]
    served: bool  # it was ready
    before: str = ""


class Explanation(NamedTuple):
    """What is said of an end. error: the cause in the server's own words, whole, or ""."""

    sentence: str
    error: str = ""
    never: bool = False  # it can never work as it is
    again: bool = False  # it ended of the same error as the start before


def explain_end(launch: Launch, ended: Ended) -> Explanation:
    """What a server's wait status and its lines say: see words.tell."""
    try:
        from vllm_safe.launch.end_sentence import compose_explanation  # noqa: PLC0415 - patterns and words that only an end needs

        return compose_explanation(launch, ended)
    except Exception:  # noqa: BLE001 - the package may have been replaced meanwhile: any error is less than the end that is to be told
        never = os.waitstatus_to_exitcode(ended.status) in NEVER_CAN_WORK
        return Explanation(f"{launch.name} ended by itself ({describe_ending(ended.status)}).", never=never)
