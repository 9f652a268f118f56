"""The table of figures of a report: the extreme or the last value of each recorded column, with its time."""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter, itemgetter
from typing import NamedTuple

from vllm_safe.common.sizes import format_size, format_span
from vllm_safe.contract.recorded_run import Run, Sample
from vllm_safe.report.series import phases_of, samples_of


class Figure(NamedTuple):
    """One row of the table. `value` is the recorder's own number (seconds where `text` is a time span)."""

    key: str
    label: str
    value: float
    text: str
    time: float | None = None  # when it was recorded, in Unix seconds
    limit: int | None = None
    limit_text: str = ""


def share_text(share: float) -> str:
    """Return a share of 0..1 as a percentage: 0.4213 as "42%"."""
    return f"{share:.0%}" if not 0 < share < 0.1 else f"{share:.1%}"


def rate_text(rate: float) -> str:
    """Return bytes per second as text."""
    return f"{format_size(int(rate))}/s"


def _size_text(size: float) -> str:
    return format_size(int(size))


def _count_text(count: float) -> str:
    return f"{count:,.0f}".replace(",", " ") if count == int(count) or count >= 100 else f"{count:.1f}"


def watts_text(power: float) -> str:
    """Return watts as text."""
    return f"{power:.0f} W"


def _celsius_text(temperature: float) -> str:
    return f"{temperature:.0f} °C"


def format_figure(unit: str) -> Callable[[float], str]:
    """Return the function that formats a value of a unit (see Plot)."""
    texts = {"bytes": _size_text, "bytes/s": rate_text, "share": share_text, "watts": watts_text, "celsius": _celsius_text}
    return texts.get(unit, _count_text)


# field of Sample, label, function that picks a sample, formatter, name of the limit
_ROWS: tuple[tuple[str, str, Callable[..., Sample], Callable[[float], str], str], ...] = (
    ("memory", "Peak memory of the model, in total", max, _size_text, "memory_max"),
    ("anon", "Peak anonymous memory of the model", max, _size_text, ""),
    ("swap", "Peak swap of the model", max, _size_text, "swap_max"),
    ("ram_available", "Lowest RAM available on the machine", min, _size_text, ""),
    ("swap_free", "Lowest swap free on the machine", min, _size_text, ""),
    ("memory_pressure", "Peak memory pressure of the model", max, share_text, ""),
    ("os_memory_pressure", "Peak memory pressure of the system", max, share_text, ""),
    ("io_pressure", "Peak I/O pressure of the model", max, share_text, ""),
    ("os_io_pressure", "Peak I/O pressure of the system", max, share_text, ""),
    ("disk_read", "Peak disk read rate", max, rate_text, ""),
    ("disk_write", "Peak disk write rate", max, rate_text, ""),
    ("major_faults", "Peak major faults per second", max, _count_text, ""),
    ("read", "Model files read", max, _size_text, ""),
    ("cpu", "Peak CPUs in use", max, _count_text, ""),
    ("requests", "Peak concurrent requests", max, _count_text, ""),
    ("tokens", "Tokens generated", max, _count_text, ""),
)


# field of Gpu, label, formatter
_GPU_ROWS: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("power", "Peak power draw of GPU {}", watts_text),
    ("temperature", "Peak temperature of GPU {}", _celsius_text),
    ("heat", "Peak throttling by heat of GPU {}", share_text),
    ("braked", "Peak power brake of GPU {}", share_text),
    ("lanes", "Lanes of the PCIe link of GPU {}", _count_text),
    ("generation", "Highest PCIe generation of GPU {}", _count_text),
)


def figures_of(run: Run) -> tuple[Figure, ...]:
    """Return the figures that are known of a run."""
    samples = samples_of(run)
    rows = [*_times(run)]
    for key, label, pick, render, limit_name in _ROWS:
        known = [sample for sample in samples if getattr(sample, key) is not None]
        if known:
            found = pick(known, key=attrgetter(key))
            limit = run.start.limits.get(limit_name)
            value = getattr(found, key)
            rows.append(Figure(key, label, value, render(value), found.time, limit, "" if limit is None else _size_text(limit)))
    return (*rows, *_gpus(samples))


def _times(run: Run) -> list[Figure]:
    ready = next((stretch for stretch in phases_of(run) if stretch.phase == "ready"), None)
    rows = []
    if ready:
        rows.append(
            Figure("ready_after", "Ready after", ready.begin - run.start.time, format_span(ready.begin - run.start.time), ready.begin)
        )
    if run.end:
        rows.append(
            Figure("ended_after", "Ended after", run.end.time - run.start.time, format_span(run.end.time - run.start.time), run.end.time)
        )
    return rows


def _gpus(samples: tuple[Sample, ...]) -> list[Figure]:
    rows = []
    for card in range(max((len(sample.gpus) for sample in samples), default=0)):
        known = [sample for sample in samples if card < len(sample.gpus)]
        most = max(known, key=lambda sample: sample.gpus[card].used)
        gpu = most.gpus[card]
        rows.append(
            Figure(
                f"gpu{card}.used",
                f"Peak memory of GPU {card}",
                gpu.used,
                _size_text(gpu.used),
                most.time,
                gpu.total,
                _size_text(gpu.total),
            )
        )
        rows += [row for field, label, render in _GPU_ROWS if (row := _peak_of_card(known, card, field, label, render))]
    return rows


def _peak_of_card(samples: list[Sample], card: int, field: str, label: str, render: Callable[[float], str]) -> Figure | None:
    """Return the highest value of a field of one GPU, None if it is never known; 0 is no news for what slows it down."""
    known = [(value, sample.time) for sample in samples if (value := getattr(sample.gpus[card], field)) is not None]
    value, when = max(known, key=itemgetter(0), default=(0, 0.0))
    return Figure(f"gpu{card}.{field}", label.format(card), value, render(value), when) if value else None
