"""The first request: one token, which a vLLM server has to generate before it counts as ready. Pure."""

from __future__ import annotations

from vllm_safe.common.sizes import format_span
from vllm_safe.launch.actions import Action, LogLine
from vllm_safe.launch.http_probe import Answer
from vllm_safe.launch.load_progress import LONGEST_TICK

_FAILED, _NOT_IMPLEMENTED = 500, 501  # HTTP status: 500 and above are failures of the server; 501 is a permanent answer


class FirstToken:
    """The state of the first request: whether it was sent, how long it has been unanswered, and the meaning of the answers."""

    def __init__(self) -> None:
        self.asked = False  # a request is under way
        self._at: float | None = None  # the time up to which `_waited` has been counted; None: no token is owed
        self._waited = 0.0
        self._last = ""

    def ask(self, now: float) -> None:
        """Note that the request was sent."""
        self.asked = True
        self._at = now if self._at is None else self._at

    def pass_time(self, now: float) -> None:
        """Count the time while a token is owed; the time of a freeze does not count."""
        if self._at is not None:
            self._waited += min(now - self._at, LONGEST_TICK)
            self._at = now

    def overdue(self, limit: float) -> str:
        """Return the reason why the server counts as hung, or "". limit: seconds."""
        if self._at is None or self._waited < limit:
            return ""
        return f"the health URL answers, but no token was generated within {format_span(self._waited)} (hang_timeout){self._last}"

    def answered(self, answer: Answer) -> tuple[bool, list[Action]]:
        """Return whether the server is ready, and the lines to log. If not, the request is repeated once the health URL has answered."""
        self.asked = False
        if not answer.status:  # the connection broke off: no token is owed until the request is sent again
            self._at = None
            return False, []
        result = f"the first request, for one token, {answer.text}"
        if answer.status >= _FAILED and answer.status != _NOT_IMPLEMENTED:  # the time continues to count
            before, self._last = self._last, f"; the last {answer.text}"
            return False, [LogLine(f"{result}: retrying", level=4)] if before != self._last else []
        return True, [] if answer.healthy else [LogLine(f"{result}: not every model generates tokens", level=5)]
