"""Whether a serving model has had requests lately. Pure. Connections that clients merely keep open do not count.

A model becomes idle only at a reading of its metrics. After a freeze, or while the server is too busy to answer, nothing is known.
"""

from __future__ import annotations

from collections.abc import Mapping

from vllm_safe.contract.launch_file import Launch

# The names in /metrics of vLLM 0.32 (v1/metrics/loggers.py): requests that have ended, for any reason, and requests in progress.
FINISHED = "vllm:request_success_total"
_UNFINISHED = ("vllm:num_requests_running", "vllm:num_requests_waiting")
_JUMP = 1.0  # seconds by which the clock moves on at once: a suspend of this machine, or a clock that was set; neither is idle time
_MASKED = 2  # readings after the answer to our own request: the first may have been taken before the request was counted


class Idleness:
    """The idle time of one model that a request started. now: seconds of a monotonic clock. wall: Unix time."""

    def __init__(self, launch: Launch, now: float, wall: float) -> None:
        self.used = wall  # the last time at which a request was seen, by the clock as it is now
        self.is_over = False
        self._limit = launch.idle_timeout
        self._since = now
        self._finished: float | None = None
        self._asking, self._masked = False, 0  # our own request is in progress; the number of readings in which it may still appear

    def asked(self) -> None:
        """Record that the main process itself sends a request."""
        self._asking = True

    def answered(self) -> None:
        """Record that the main process has its answer."""
        self._asking, self._masked = False, _MASKED

    def counted(self, now: float, wall: float, figures: Mapping[str, float]) -> None:
        """Take the figures of /metrics, or {} if the server did not answer. A server that does not count its requests is never idle."""
        if not all(name in figures for name in _UNFINISHED):
            return
        own = 1 if self._asking or self._masked else 0
        self._masked = max(0, self._masked - 1)
        last, self._finished = self._finished, figures.get(FINISHED)
        ended = self._finished is None or (last is not None and self._finished - last > own)
        self._see(now, wall, used=ended or sum(figures[name] for name in _UNFINISHED) > own)

    def connected(self, now: float, wall: float, count: int) -> None:
        """Take the number of connections to a server without counters, where each connection counts as a request."""
        self._see(now, wall, used=count > 0)

    def _see(self, now: float, wall: float, *, used: bool) -> None:
        jump = (wall - self.used) - (now - self._since)
        if used:
            self.used, self._since = wall, now
        elif abs(jump) > _JUMP:
            self.used += jump
        self.is_over = 0 < self._limit <= now - self._since
