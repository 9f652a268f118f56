"""The first request: one token, which a vLLM server has to make before it counts as ready. Pure."""

from __future__ import annotations

from vllm_safe.common.sizes import format_span
from vllm_safe.launch.actions import Action, LogLine
from vllm_safe.launch.http_probe import Answer
from vllm_safe.launch.load_progress import LONGEST_TICK

_FAILED, _NOT_IMPLEMENTED = 500, 501  # status of HTTP: from the first on it is the server that failed; the second it says for ever


class FirstToken:
    """Whether it was asked for, for how long the server owes it, and what the answers mean."""

    def __init__(self) -> None:
        self.asked = False  # and not answered yet
        self._at: float | None = None  # it has been owed since; seconds until then are in `waited`
        self._waited = 0.0
        self._last = ""

    def ask(self, now: float) -> None:
        """The question is out."""
        self.asked = True
        self._at = now if self._at is None else self._at

    def pass_time(self, now: float) -> None:
        """Let the clock run while it is owed; a freeze does not count."""
        if self._at is not None:
            self._waited += min(now - self._at, LONGEST_TICK)
            self._at = now

    def overdue(self, limit: float) -> str:
        """Why it counts as hung, or ""."""
        if self._at is None or self._waited < limit:
            return ""
        return f"it answers its health URL, but has not made one token within {format_span(self._waited)} (hang_timeout){self._last}"

    def answered(self, answer: Answer) -> tuple[bool, list[Action]]:
        """Whether the server is ready, and what is to be said. If not, it is asked again once its health URL has answered."""
        self.asked = False
        if not answer.status:  # it broke off: nothing is owed until it is asked again
            self._at = None
            return False, []
        said = f"the first request, for one token, {answer.text}"
        if answer.status >= _FAILED and answer.status != _NOT_IMPLEMENTED:  # the time runs on
            before, self._last = self._last, f"; the last {answer.text}"
            return False, [LogLine(f"{said}: asking again", level=4)] if before != self._last else []
        return True, [] if answer.healthy else [LogLine(f"{said}: not every model makes tokens", level=5)]
