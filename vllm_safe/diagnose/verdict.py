"""What `vllm-safe why` answers, and what the rules that find the answer look at."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from vllm_safe.causes.cause import find_cause
from vllm_safe.causes.messages import Message
from vllm_safe.common.sizes import format_exact_span
from vllm_safe.contract.recorded_run import End, Event, Run, Sample

MOMENTS = 15.0  # seconds, a recorder's slowest interval and a death that takes its time
SHORTLY = 120.0  # seconds before the end in which what happened may have caused it
_QUARTER = 900.0  # seconds: what a suggested time is a multiple of
_LONGEST = 30 * 86400.0  # seconds that a setting takes
_SILENT = 120.0  # seconds without a line of the recorder, which writes one each ten, until it counts as gone


class Evidence(NamedTuple):
    """One recorded fact. time: Unix seconds; None: of the whole run."""

    time: float | None
    text: str


class SettingChange(NamedTuple):
    """A setting to change: its path in config.yaml, both values as they are written there ("": not recorded), and why."""

    path: str
    old: str
    new: str
    reason: str


class Verdict(NamedTuple):
    """The answer. code: a word for a program; tone: bad, good, or "" where it is neither; when: Unix seconds."""

    code: str
    sentence: str
    when: float
    tone: str = "bad"
    evidence: tuple[Evidence, ...] = ()
    changes: tuple[SettingChange, ...] = ()
    hint: str = ""  # what to do besides, in one line, or ""


@dataclass(frozen=True)
class Case:
    """A run to be judged. boot: the id of the present boot; now: Unix seconds."""

    run: Run
    boot: str
    now: float

    @property
    def name(self) -> str:
        """The model's."""
        return self.run.start.name

    @property
    def end(self) -> End:
        """What it ended with; an empty one at the last sign of life where nothing was recorded."""
        return self.run.end or End(self.last_seen)

    @cached_property
    def last_seen(self) -> float:
        """The time of the last record."""
        parts: tuple[Sequence[Sample | Event | End], ...] = (self.run.samples, self.run.events, [self.run.end] if self.run.end else [])
        return max(self.run.start.time, *(part[-1].time for part in parts if part), 0.0)

    @property
    def is_running(self) -> bool:
        """Whether the recorder still writes."""
        return self.run.end is None and self.run.start.boot == self.boot and self.now - self.last_seen < _SILENT

    @property
    def last(self) -> Sample:
        """The last figures."""
        return self.run.samples[-1] if self.run.samples else Sample(self.last_seen, "")

    @cached_property
    def fullest(self) -> Sample:
        """The figures of when it held most RAM in its last moments: those after a kill tell of what was freed."""
        if self.is_running:
            return self.last
        moments = [sample for sample in reversed(self.run.samples) if self.last.time - sample.time <= MOMENTS]
        return max(moments, key=lambda sample: sample.memory or 0, default=self.last)

    @cached_property
    def phase(self) -> str:
        """The phase that it was in before its end was begun, or ""."""
        phases = [sample.phase for sample in self.run.samples if sample.phase not in {"stopping", "ended", ""}]
        return phases[-1] if phases else ""

    @property
    def was_ready(self) -> bool:
        """Whether it ever served."""
        return (
            self.end.served
            or any(line.phase == "ready" for line in self.run.samples)
            or any(line.text == "ready" for line in self.of("phase"))
        )

    @cached_property
    def message(self) -> Message | None:
        """What the server itself said was wrong: as its main process found it, or by the lines that were recorded."""
        return find_cause((), self.run.log, served=self.was_ready, recorded=self.end.error)

    def of(self, kind: str) -> list[Event]:
        """The events of a kind."""
        return [event for event in self.run.events if event.kind == kind]

    def late(self, kind: str) -> list[Event]:
        """Those of them that may have caused the end."""
        return [event for event in self.of(kind) if self.end.time - event.time < SHORTLY]

    def peak(self, field: str) -> int | None:
        """The largest of a figure."""
        return max((value for sample in self.run.samples if (value := getattr(sample, field)) is not None), default=None)

    def limit(self, name: str) -> int | None:
        """A limit in bytes, by its setting's name."""
        return self.run.start.limits.get(name)

    def host(self, name: str) -> int:
        """A figure of the machine, or 0."""
        value: Any = self.run.start.host.get(name)
        return value if isinstance(value, int) else 0

    def arg(self, name: str) -> str:
        """An option of `vllm serve` as it was written, or "unset"."""
        args: Mapping[str, Any] = self.run.start.args
        return str(args[name]) if name in args else "unset"

    def env(self, name: str) -> str:
        """A variable of the server's environment, or "unset"; begin.py says which ones are recorded."""
        return self.run.start.env.get(name, "unset")

    def longer(self, setting: str, reason: str, *, least: float = 0.0) -> tuple[SettingChange, ...]:
        """Twice one of its times, and more than `least` seconds; () where that is not known, or cannot be set."""
        old = self.run.start.times.get(setting, 0.0)
        new = math.ceil(max(2 * old, least + 1) / _QUARTER) * _QUARTER
        if not 0 < old < new <= _LONGEST:
            return ()
        return (SettingChange(self.path(setting), format_exact_span(old), format_exact_span(new), reason),)

    def path(self, rest: str) -> str:
        """A setting of this model."""
        return f"models.{self.name}.{rest}"
