"""The plots of a run as plain values, which the HTML page embeds as JSON and the terminal report draws. Pure.

Units are the recorder's: bytes, bytes per second, shares 0..1, Unix seconds. No number is rounded or interpolated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from operator import attrgetter
from typing import NamedTuple

from vllm_safe.contract.recorded_run import Run, Sample

Column = tuple[float | None, ...]
_BEYOND_HEADROOM = 4  # a limit above this multiple of the peak would flatten the line: it is only named in the caption


class PlotLine(NamedTuple):
    """One line of a plot, with a value for each sample; None where the value is not known."""

    key: str  # field of Sample, or gpu0.used
    label: str
    values: Column


class Plot(NamedTuple):
    """One plot of values in the same unit. `stacked`: the lines add up to a total."""

    key: str
    title: str
    unit: str  # bytes, bytes/s, share, watts, celsius, count
    lines: tuple[PlotLine, ...]
    limit: int | None = None
    limit_label: str = ""
    stacked: bool = False
    scarce: bool = False  # the minimum matters, not the peak

    @property
    def peak(self) -> float:
        """Highest value drawn."""
        columns = [line.values for line in self.lines]
        tops = [sum(value or 0 for value in row) for row in zip(*columns, strict=True)] if self.stacked else known_values(columns)
        return max(tops, default=0.0)

    @property
    def limit_fits(self) -> bool:
        """Whether the limit can be drawn without flattening the lines."""
        return self.limit is not None and self.limit <= _BEYOND_HEADROOM * self.peak


class PhaseSpan(NamedTuple):
    """A phase with its begin and end, in Unix seconds."""

    phase: str
    begin: float
    end: float


class _Kind(NamedTuple):
    key: str
    title: str
    unit: str
    lines: tuple[tuple[str, str], ...]  # field of Sample, label
    limit: str = ""  # name of the limit in Run.start.limits
    limit_label: str = ""
    stacked: bool = False
    scarce: bool = False


_KINDS = (
    _Kind(
        "memory",
        "Memory of the model",
        "bytes",
        (("anon", "anonymous"), ("shmem", "shared"), ("file", "page cache")),
        "memory_max",
        "memory_max",
        stacked=True,
    ),
    _Kind("swap", "Swap", "bytes", (("swap", "of the model"), ("swap_free", "free on the machine")), "swap_max", "swap_max"),
    _Kind("available", "RAM available on the machine", "bytes", (("ram_available", "available"),), scarce=True),
    _Kind(
        "pressure",
        "Pressure (PSI full): share of time in which all tasks stall",
        "share",
        (
            ("memory_pressure", "memory (model)"),
            ("io_pressure", "I/O (model)"),
            ("os_memory_pressure", "memory (system)"),
            ("os_io_pressure", "I/O (system)"),
        ),
    ),
    _Kind("disk", "Disks of the machine", "bytes/s", (("disk_read", "read"), ("disk_write", "written"))),
    _Kind("faults", "Major page faults of the model per second", "count", (("major_faults", "major faults"),)),
    _Kind("read", "Model files read since the start", "bytes", (("read", "read"),)),
    _Kind("cpu", "CPUs in use by the model", "count", (("cpu", "cores"),)),
    _Kind("requests", "Requests running", "count", (("requests", "requests"),)),
    _Kind("tokens", "Tokens generated since the start", "count", (("tokens", "tokens"),)),
)


def samples_of(run: Run) -> tuple[Sample, ...]:
    """Return the samples sorted by time, since a clock that was set back may have disordered them."""
    return tuple(sorted(run.samples, key=attrgetter("time")))


def plots_of(run: Run) -> tuple[Plot, ...]:
    """Return the plots of a run that have at least one value."""
    samples = samples_of(run)
    found = [_plot(kind, samples, run) for kind in _KINDS] + list(_gpu_plots(samples))
    return tuple(plot for plot in found if plot.lines)


def phases_of(run: Run) -> tuple[PhaseSpan, ...]:
    """Return the phases of the run, from the start to the end or to the last sample."""
    stretches: list[PhaseSpan] = []
    for sample in samples_of(run):
        if not stretches:
            stretches.append(PhaseSpan(sample.phase, min(run.start.time, sample.time), sample.time))
        elif stretches[-1].phase != sample.phase:
            stretches[-1] = stretches[-1]._replace(end=sample.time)
            stretches.append(PhaseSpan(sample.phase, sample.time, sample.time))
        else:
            stretches[-1] = stretches[-1]._replace(end=sample.time)
    if stretches and run.end and run.end.time > stretches[-1].end:
        stretches[-1] = stretches[-1]._replace(end=run.end.time)
    return tuple(stretches)


def last_time(run: Run) -> float:
    """Return the time of the end, or of the last record if there is no end."""
    known = [run.start.time, *(sample.time for sample in run.samples), *(event.time for event in run.events)]
    return max(known) if run.end is None else run.end.time


def known_values(columns: Iterable[Column]) -> list[float]:
    """Return all values that are known."""
    return [value for column in columns for value in column if value is not None]


def _plot(kind: _Kind, samples: tuple[Sample, ...], run: Run) -> Plot:
    lines = (PlotLine(key, label, tuple(map(attrgetter(key), samples))) for key, label in kind.lines)
    limit = run.start.limits.get(kind.limit)
    return Plot(kind.key, kind.title, kind.unit, _with_values(lines), limit, kind.limit_label, kind.stacked, kind.scarce)


def _gpu_plots(samples: tuple[Sample, ...]) -> Iterable[Plot]:
    cards = range(max((len(sample.gpus) for sample in samples), default=0))

    def lines(field: str) -> tuple[PlotLine, ...]:
        get: Callable[[object], float | None] = attrgetter(field)
        return _with_values(
            PlotLine(f"gpu{card}.{field}", f"GPU {card}", tuple(get(s.gpus[card]) if card < len(s.gpus) else None for s in samples))
            for card in cards
        )

    totals = {gpu.total for sample in samples for gpu in sample.gpus}
    yield Plot("gpu-memory", "GPU memory", "bytes", lines("used"), max(totals, default=None), "per GPU")
    yield Plot("gpu-busy", "GPU utilization: share of time in which a GPU computes", "share", lines("busy"))
    yield Plot("gpu-power", "GPU power draw", "watts", lines("power"))
    yield Plot("gpu-temperature", "GPU temperature", "celsius", lines("temperature"))
    for field, why in (("heat", "by heat"), ("capped", "by the power limit"), ("braked", "by the power supply or hardware protection")):
        slowed = tuple(line for line in lines(field) if any(line.values))  # most never are
        yield Plot(f"gpu-{field}", f"GPU clocks lowered {why}: share of time", "share", slowed)


def _with_values(lines: Iterable[PlotLine]) -> tuple[PlotLine, ...]:
    return tuple(line for line in lines if any(value is not None for value in line.values))
