"""The progress of a start, and whether it continues. Pure. Phases and lines come from the log, figures from the processes."""

from __future__ import annotations

from collections.abc import Sequence

from vllm_safe.common.sizes import format_size, format_span
from vllm_safe.contract.state_file import NO_CARDS, CardUsage, LoadProgress
from vllm_safe.launch.load_progress import Checkpoint, CommunicationWait, ProcessTotals, Stillness
from vllm_safe.launch.phases import PhaseTracker
from vllm_safe.launch.processes import Process
from vllm_safe.launch.timers import TimeOfDay

_QUIET = 60.0  # seconds without progress after which the status mentions it
IN_VAIN = "its processes wait for each other"  # `why` recognizes this end by it


class Loading:
    """The progress of one start. sizes: bytes of the checkpoint's files, () if unknown. Times: see Stillness."""

    def __init__(self, now: float, wall: float, sizes: Sequence[int]) -> None:
        self.follow = PhaseTracker(now, "starting")
        self.progress: LoadProgress | None = None
        self._started = now
        self._sums = ProcessTotals()
        self._waits = CommunicationWait()
        self._signs: tuple[str, ...] = ()
        self._stillness = Stillness(now, wall)
        self._checkpoint = Checkpoint(sizes)

    @property
    def still(self) -> float:
        """Seconds without any movement, as far as they count."""
        return self._stillness.still

    @property
    def in_vain(self) -> str:
        """A statement that the processes wait for each other, with its signs, once nothing else has moved for a while; or ""."""
        return self._vain() if self.still >= _QUIET else ""

    def read_output(self, chunk: bytes, now: float) -> bool:
        """Take a chunk of the output, which may be cut anywhere; return whether the phase has changed."""
        self._waits.read_output(chunk, now)
        return self.follow.read_output(chunk, now)

    def look(self, now: float, wall: float, processes: Sequence[Process], cards: CardUsage = NO_CARDS) -> None:
        """Take a reading of the processes and of the GPUs."""
        stopped = [f"its process {process.comm} ({process.pid}) is stopped" for process in processes if process.state == "T"]
        self._signs = (*stopped[:1], *self._waits.signs(now, cards.busy))
        self._stillness.look(now, wall, self._sums.add(processes, self.follow.news, cards.used), waits=bool(self._signs))
        loading = self.follow.phase == "loading"
        if self.follow.stored:
            self.progress = self._checkpoint.count(now, self.follow.read, self.follow.stored) if loading else None
        else:
            self.progress = self._checkpoint.look(now, processes, loading=loading, done=self.follow.done, of=self.follow.of)

    def status(self, now: float, phase: str, health: str) -> str:
        """Describe the progress: "loading, 3 min 20 s: 12.0 GiB of 71.8 GiB, 120 MiB/s, about 8 min left". health: appended."""
        details = [*([self.follow.text] if self.follow.text and phase == self.follow.phase else []), *_describe(self.progress)]
        text = f"{phase}, {format_span(now - self._started)}" + (f": {', '.join(details)}" if details else "")
        return text + (f"; no progress for {format_span(self.still)}" if self.still >= _QUIET else "") + health

    def stall(self, phase: str, time_of_day: TimeOfDay) -> str:
        """Return the reason why the start counts as hung."""
        vain = f"{self._vain()}; " if self._signs else ""
        return f"no progress for {format_span(self.still)} while {phase} (stall_timeout): {vain}{self._stillness.describe(time_of_day)}"

    def _vain(self) -> str:
        return f"{IN_VAIN}, since {' and '.join(self._signs)}" if self._signs else ""


def _describe(progress: LoadProgress | None) -> list[str]:
    if not progress or progress.total is None:
        return []
    parts = [f"{format_size(progress.read)} of {format_size(progress.total)}"]
    if progress.rate:
        parts.append(f"{format_size(int(progress.rate))}/s")
    if progress.left:
        parts.append(f"about {format_span(progress.left)} left")
    return parts
