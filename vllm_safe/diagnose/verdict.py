"""The verdict that `vllm-safe why` prints, and the case that the rules judge."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from vllm_safe.causes.cause import find_cause
from vllm_safe.causes.messages import Message
from vllm_safe.common.sizes import format_exact_span
from vllm_safe.contract.recorded_run import End, Event, Run, Sample

MOMENTS = 15.0  # seconds: the recorder's slowest interval, and the time that a process takes to die
SHORTLY = 120.0  # seconds before the end, in which an event may have caused it
_QUARTER = 900.0  # seconds: a suggested time is a multiple of it
_LONGEST = 30 * 86400.0  # seconds: the longest time that a setting accepts


class Evidence(NamedTuple):
    """One recorded fact. time: Unix seconds, or None for a fact about the whole run."""

    time: float | None
    text: str


class SettingChange(NamedTuple):
    """A setting to change: its path in config.yaml, both values as written there ("" if not recorded), and the reason."""

    path: str
    old: str
    new: str
    reason: str


class Verdict(NamedTuple):
    """The verdict on a run. code: a word for programs; tone: "bad", "good", or "" for neither; when: Unix seconds."""

    code: str
    sentence: str
    when: float
    tone: str = "bad"
    evidence: tuple[Evidence, ...] = ()
    changes: tuple[SettingChange, ...] = ()
    hint: str = ""  # what else to do, in one line, or ""


@dataclass(frozen=True)
class Case:
    """A run to judge. boot: the id of the present boot; now: Unix seconds."""

    run: Run
    boot: str
    now: float

    @property
    def name(self) -> str:
        """Name of the model."""
        return self.run.start.name

    @property
    def end(self) -> End:
        """The recorded end; without one, an empty end at the time of the last record."""
        return self.run.end or End(self.last_seen)

    @cached_property
    def last_seen(self) -> float:
        """Time of the last record, in Unix seconds."""
        return self.run.last_record

    @cached_property
    def over_at(self) -> float:
        """Time at which the server was seen to end or to be stopped: the recorded end comes after the evidence was collected."""
        seen = [event.time for event in self.run.events if event.kind in {"phase", "stopping"} and event.text in {"stopping", "ended"}]
        return min(seen, default=self.end.time)

    @property
    def is_running(self) -> bool:
        """Whether the recorder still writes to the run."""
        return self.run.end is None and self.run.start.boot == self.boot and not self.run.is_silent(self.now)

    @property
    def last(self) -> Sample:
        """The last sample."""
        return self.run.samples[-1] if self.run.samples else Sample(self.last_seen, "")

    @cached_property
    def fullest(self) -> Sample:
        """The sample with most RAM in the last moments: samples after a kill show memory that was freed already."""
        if self.is_running:
            return self.last
        moments = [sample for sample in reversed(self.run.samples) if self.last.time - sample.time <= MOMENTS]
        return max(moments, key=lambda sample: sample.memory or 0, default=self.last)

    @cached_property
    def phase(self) -> str:
        """The last phase before the end began, or ""."""
        phases = [sample.phase for sample in self.run.samples if sample.phase not in {"stopping", "ended", ""}]
        return phases[-1] if phases else ""

    @property
    def was_ready(self) -> bool:
        """Whether the model ever served."""
        return (
            self.end.served
            or any(line.phase == "ready" for line in self.run.samples)
            or any(line.text == "ready" for line in self.of("phase"))
        )

    @cached_property
    def message(self) -> Message | None:
        """The server's own error, as its main process recorded it, or as the recorded log lines show it."""
        return find_cause((), self.run.log, served=self.was_ready, recorded=self.end.error)

    def of(self, kind: str) -> list[Event]:
        """Return the events of a kind."""
        return [event for event in self.run.events if event.kind == kind]

    def late(self, kind: str) -> list[Event]:
        """Return the events of a kind that were shortly before the end, so that they may have caused it."""
        return [event for event in self.of(kind) if self.end.time - event.time < SHORTLY]

    def peak(self, field: str) -> int | None:
        """Return the largest value of a field of the samples."""
        return max((value for sample in self.run.samples if (value := getattr(sample, field)) is not None), default=None)

    def limit(self, name: str) -> int | None:
        """Return a limit by the name of its setting, in bytes (tasks_max: a count)."""
        return self.run.start.limits.get(name)

    def host(self, name: str) -> int:
        """Return a figure of the machine, or 0."""
        value: Any = self.run.start.host.get(name)
        return value if isinstance(value, int) else 0

    def arg(self, name: str) -> str:
        """Return an option of `vllm serve` as written, or "unset"."""
        args: Mapping[str, Any] = self.run.start.args
        return str(args[name]) if name in args else "unset"

    def env(self, name: str) -> str:
        """Return a variable of the server's environment, or "unset"; record/run_start.py lists those that are recorded."""
        return self.run.start.env.get(name, "unset")

    def longer(self, setting: str, reason: str, *, least: float = 0.0) -> tuple[SettingChange, ...]:
        """Suggest at least twice a time setting, more than `least` seconds; () if the time is unknown, or cannot be set that long."""
        old = self.run.start.times.get(setting, 0.0)
        new = math.ceil(max(2 * old, least + 1) / _QUARTER) * _QUARTER
        if not 0 < old < new <= _LONGEST:
            return ()
        return (SettingChange(self.path(setting), format_exact_span(old), format_exact_span(new), reason),)

    def path(self, rest: str) -> str:
        """Return the path of a setting of this model in config.yaml."""
        return f"models.{self.name}.{rest}"
