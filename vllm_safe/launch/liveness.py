"""The decision whether a serving server is alive. Pure. Tokens are the sign of life: vLLM's /health returns 200 while a worker hangs.

Each problem has a limit and a clock. The clock runs while the problem lasts and while this process itself runs. An idle or slow server is
no problem.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from vllm_safe.common.sizes import format_span
from vllm_safe.contract.launch_file import Launch
from vllm_safe.launch.http_probe import Answer
from vllm_safe.launch.idleness import FINISHED
from vllm_safe.launch.processes import Process
from vllm_safe.launch.timers import TimeOfDay

INTERVAL = 10.0  # seconds between two readings
# The limit in seconds for problems without recovery: a process of the engine is gone, or vLLM returns 503, which means that its engine has
# died. vLLM then exits by itself within 15 s, and may drain requests first.
SURELY = 60.0

# The names in /metrics of vLLM 0.32 (v1/metrics/loggers.py). A prompt that is prefilled in chunks moves no counter until it is complete,
# but its share of the KV cache grows.
RUNNING, WAITING, TOKENS = "vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:generation_tokens_total"
MOVING = (TOKENS, "vllm:prompt_tokens_total", "vllm:iteration_tokens_total_count", "vllm:kv_cache_usage_perc", RUNNING, WAITING)
_NAMES = {name.encode(): name for name in (*MOVING, FINISHED)}
_ENGINE = ("VLLM::EngineCor", "VLLM::Worker")  # the names that processes of the engine set, cut to the length that the kernel keeps
_LONGEST_LINE = 4096


class MetricsReader:
    """A parser for the few needed figures of /metrics, fed in chunks. `values`: the sum of each figure over all engines."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}
        self._torn = b""

    def feed(self, chunk: bytes) -> None:
        """Take the next chunk."""
        lines = (self._torn + chunk).split(b"\n")
        self._torn = lines.pop()[:_LONGEST_LINE]
        for line in lines:
            if line.startswith(b"vllm:") and (name := _NAMES.get(line.partition(b"{")[0].partition(b" ")[0])):
                try:
                    value = float(line.rpartition(b" ")[2])
                except ValueError:
                    continue
                if math.isfinite(value):  # NaN differs from itself: it would count as moving for ever, and is not a number of requests
                    self.values[name] = self.values.get(name, 0.0) + value


class Liveness:
    """The clocks of one serving server. Times are seconds of one monotonic clock. wall: Unix time."""

    def __init__(self, launch: Launch, now: float) -> None:
        self.interval = min(INTERVAL, launch.hang_timeout / 5)
        self.running: int | None = None
        self.waiting: int | None = None
        self.tokens: int | None = None
        self._launch = launch
        # The limit for tokens that do not come. On several machines, one that sees a stopped process of its own must be the first to report
        # a problem: each of both clocks may start up to two readings after the stop.
        self._token_timeout = launch.hang_timeout + (2 * self.interval if launch.nodes else 0.0)
        self._now = now
        self._wrong: dict[str, tuple[float, float, str, float]] = {}  # problem -> (seconds lasted, limit, text, Unix time of its beginning)
        self._quiet = 0.0  # seconds since a figure last moved
        self._figures: Mapping[str, float] = {}
        self._engine: dict[int, str] = {}
        self._wall = 0.0

    def pass_time(self, now: float, wall: float) -> None:
        """Advance the clocks, by at most three intervals at once: a longer time is a freeze, or a machine too busy to judge by."""
        passed = min(max(now - self._now, 0.0), 3 * self.interval)
        self._now, self._wall = now, wall
        self._quiet += passed
        self._wrong = {what: (lasted + passed, *rest) for what, (lasted, *rest) in self._wrong.items()}  # type: ignore[misc] # mypy 14664

    @property
    def wants_token(self) -> bool:
        """Whether it is time to request one token: no figure has moved for long, and no such request is under way.

        An engine that hangs at its first step after a pause never counts that request as running.
        """
        return bool(self._launch.completions) and self._quiet >= self._launch.hang_timeout / 2 and "token" not in self._wrong

    def asked_for_token(self) -> None:
        """Note that the request for one token was sent."""
        self._since("token", self._token_timeout, "a request for one token is not answered, and no token counter moves")

    def got_token(self, answer: Answer) -> None:
        """Handle any answer to the request for one token: a model that generates no tokens returns 404.

        A token is a sign of life, whatever the health URL returns.
        """
        self._wrong.pop("token", None)
        self._quiet = 0.0
        if answer.healthy:
            self._wrong.pop("health", None)

    def looked(self, processes: Sequence[Process]) -> None:
        """Take a reading of the processes."""
        present = {process.pid: process for process in processes if process.state not in "ZX"}
        self._engine |= {pid: process.comm for pid, process in present.items() if process.comm.startswith(_ENGINE)}
        stopped = {f"stopped {pid}": process for pid, process in present.items() if process.state == "T"}
        gone = {f"gone {pid}": (pid, comm) for pid, comm in self._engine.items() if pid not in present}
        for what in [what for what in self._wrong if what.startswith(("stopped ", "gone ")) and what not in stopped | gone]:
            del self._wrong[what]
        for what, process in stopped.items():
            self._since(what, self._launch.hang_timeout, f"its process {process.comm} ({process.pid}) is stopped")
        for what, (pid, comm) in gone.items():
            self._since(what, min(SURELY, self._launch.hang_timeout), f"its process {comm} ({pid}) is gone")

    def health(self, answer: Answer) -> None:
        """Take an answer of the health URL."""
        if answer.healthy:
            self._wrong.pop("health", None)
            return
        dead = self._launch.metrics and answer.status == 503
        limit = min(SURELY, self._launch.hang_timeout) if dead else self._launch.hang_timeout
        self._since("health", limit, f"{self._launch.health} {answer.text}")

    def counted(self, figures: Mapping[str, float]) -> None:
        """Take the figures of /metrics; {} if it did not answer, which the health URL will show too."""
        if RUNNING not in figures:
            return
        self.running, self.waiting, self.tokens = (int(figures.get(name, 0.0)) for name in (RUNNING, WAITING, TOKENS))
        if any(figures.get(name) != self._figures.get(name) for name in MOVING):
            self._figures, self._quiet = dict(figures), 0.0
            for outvoted in ("tokens", "health"):
                self._wrong.pop(outvoted, None)
            if "token" in self._wrong:  # the request waits in a queue that moves
                del self._wrong["token"]
                self.asked_for_token()
        elif self.running:
            what = "1 request runs" if self.running == 1 else f"{self.running} requests run"
            self._since("tokens", self._token_timeout, f"{what} and no token counter moves")

    def verdict(self, time_of_day: TimeOfDay) -> str:
        """Return the reason why the server counts as hung, or ""."""
        for lasted, limit, text, since in self._wrong.values():
            if lasted >= limit:
                setting = " (hang_timeout)" if limit >= self._launch.hang_timeout else ""  # SURELY is not a setting
                return f"{text}, for {format_span(lasted)} since {time_of_day(since)}{setting}"
        return ""

    def _since(self, what: str, limit: float, text: str) -> None:
        """Note a problem. If it existed before, its clock continues."""
        lasted, _, _, since = self._wrong.get(what, (0.0, 0.0, "", self._wall))
        self._wrong[what] = (lasted, limit, text, since)
