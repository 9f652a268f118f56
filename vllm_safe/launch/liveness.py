"""Whether a server that serves is alive: pure. Tokens are the sign of life, since vLLM's /health says 200 while a worker hangs.

Each thing that is wrong has a limit and a clock, which runs while it lasts and while we run ourselves. Idle is not wrong, nor is slow.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence

from vllm_safe.common.sizes import format_span
from vllm_safe.contract.launch_file import Launch
from vllm_safe.launch.http_probe import Answer
from vllm_safe.launch.processes import Process

INTERVAL = 10.0  # seconds between two looks
# What cannot get well again: a process of the engine that is gone, or 503 of vLLM, which says that its engine has died. vLLM ends itself
# within 15 s then, and may first drain.
SURELY = 60.0

# As /metrics of vLLM 0.32 names them (v1/metrics/loggers.py). A prompt that is read in pieces moves no counter until it is read, but its
# share of the cache grows.
RUNNING, WAITING, TOKENS = "vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:generation_tokens_total"
MOVING = (TOKENS, "vllm:prompt_tokens_total", "vllm:iteration_tokens_total_count", "vllm:kv_cache_usage_perc", RUNNING, WAITING)
_NAMES = {name.encode(): name for name in MOVING}
_ENGINE = ("VLLM::EngineCor", "VLLM::Worker")  # what processes of the engine call themselves, as far as the kernel keeps it
_LONGEST_LINE = 4096


class MetricsReader:
    """Reads the few figures out of a long answer in pieces: the sum of each over all engines."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}
        self._torn = b""

    def feed(self, chunk: bytes) -> None:
        """Take the next piece."""
        lines = (self._torn + chunk).split(b"\n")
        self._torn = lines.pop()[:_LONGEST_LINE]
        for line in lines:
            if line.startswith(b"vllm:") and (name := _NAMES.get(line.partition(b"{")[0].partition(b" ")[0])):
                try:
                    value = float(line.rpartition(b" ")[2])
                except ValueError:
                    continue
                if math.isfinite(value):  # NaN differs from itself: it would move for ever, and is no number of requests
                    self.values[name] = self.values.get(name, 0.0) + value


class Liveness:
    """The clocks of one serving server. Times are seconds of one monotonic clock; `wall` is Unix time."""

    def __init__(self, launch: Launch, now: float) -> None:
        self.interval = min(INTERVAL, launch.hang_timeout / 5)
        self.running: int | None = None
        self.waiting: int | None = None
        self.tokens: int | None = None
        self._launch = launch
        self._now = now
        self._wrong: dict[str, tuple[float, float, str, float]] = {}  # what -> (lasted, limit, text, since)
        self._quiet = 0.0  # seconds since a figure moved
        self._figures: Mapping[str, float] = {}
        self._engine: dict[int, str] = {}
        self._wall = 0.0

    def pass_time(self, now: float, wall: float) -> None:
        """Let the clocks run: at most for three looks at once, the rest being a freeze or a machine too busy to judge by."""
        passed = min(max(now - self._now, 0.0), 3 * self.interval)
        self._now, self._wall = now, wall
        self._quiet += passed
        self._wrong = {what: (lasted + passed, *rest) for what, (lasted, *rest) in self._wrong.items()}  # type: ignore[misc] # mypy 14664

    @property
    def wants_token(self) -> bool:
        """Whether it is time to ask for a token: nothing has moved for long, and nobody is known to wait for anything.

        An engine that hangs at its first step after a pause never counts that request as running.
        """
        return bool(self._launch.completions) and self._quiet >= self._launch.hang_timeout / 2 and "token" not in self._wrong

    def asked_for_token(self) -> None:
        """The question is out."""
        self._since("token", self._launch.hang_timeout, "a request for one token is not answered, and no token counter moves")

    def got_token(self, answer: Answer) -> None:
        """It was answered, by whatever: a model that makes no tokens says 404. A token is life, whatever the health URL says."""
        self._wrong.pop("token", None)
        self._quiet = 0.0
        if answer.healthy:
            self._wrong.pop("health", None)

    def looked(self, processes: Sequence[Process]) -> None:
        """Take what the processes are doing."""
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
        """The health URL was asked."""
        if answer.healthy:
            self._wrong.pop("health", None)
            return
        dead = self._launch.metrics and answer.status == 503
        limit = min(SURELY, self._launch.hang_timeout) if dead else self._launch.hang_timeout
        self._since("health", limit, f"{self._launch.health} {answer.text}")

    def counted(self, figures: Mapping[str, float]) -> None:
        """/metrics was asked. {} if it did not answer: then health will say so."""
        if RUNNING not in figures:
            return
        self.running, self.waiting, self.tokens = (int(figures.get(name, 0.0)) for name in (RUNNING, WAITING, TOKENS))
        if any(figures.get(name) != self._figures.get(name) for name in MOVING):
            self._figures, self._quiet = dict(figures), 0.0
            for outvoted in ("tokens", "health"):
                self._wrong.pop(outvoted, None)
            if "token" in self._wrong:  # it waits in a queue that moves
                del self._wrong["token"]
                self.asked_for_token()
        elif self.running:
            what = "1 request runs" if self.running == 1 else f"{self.running} requests run"
            self._since("tokens", self._launch.hang_timeout, f"{what} and no token counter moves")

    def verdict(self) -> str:
        """Why it counts as hung, or ""."""
        for lasted, limit, text, since in self._wrong.values():
            if lasted >= limit:
                setting = " (hang_timeout)" if limit == self._launch.hang_timeout else ""  # else it was SURELY, which nobody can set
                return f"{text}, for {format_span(lasted)} since {time.strftime('%H:%M:%S', time.localtime(since))}{setting}"
        return ""

    def _since(self, what: str, limit: float, text: str) -> None:
        """Something is wrong, and was before if its clock runs."""
        lasted, _, _, since = self._wrong.get(what, (0.0, 0.0, "", self._wall))
        self._wrong[what] = (lasted, limit, text, since)
