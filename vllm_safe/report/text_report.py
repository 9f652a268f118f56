"""The report for a terminal of 80 columns: verdict, plots, figures, events and last log lines."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator
from operator import itemgetter

import plotille  # type: ignore[import-untyped]

from vllm_safe.common.printable_text import printable
from vllm_safe.common.sizes import format_span
from vllm_safe.contract.recorded_run import Run
from vllm_safe.diagnose.verdict import Verdict
from vllm_safe.report.figures import figures_of, format_figure
from vllm_safe.report.local_times import clock_time, date_time
from vllm_safe.report.redact import redact
from vllm_safe.report.series import Plot, PlotLine, known_values, last_time, phases_of, plots_of, samples_of

_COLUMNS = 80
_WIDTH, _HEIGHT = 64, 7  # size of a plot in characters, without its axes
_COLOURS = ("blue", "yellow", "green", "magenta", "cyan", "red", "white")
_LOG_LINES = 20
_LEAST_POINTS = 5  # the fewest points of a line that shows a trend; fewer are mere dots


def render_text(run: Run, verdict: Verdict, bold: Callable[[str], str], *, colours: bool) -> Iterator[str]:
    """Yield lines without secrets, and without control sequences except those of `bold` and of the colours of the plots."""
    yield from map(bold, _wrapped(verdict.sentence))
    until = f"ended {clock_time(run.end.time, run.start.time)}" if run.end else "no end recorded"
    yield f"started {date_time(run.start.time)}, {until}; {format_span(last_time(run) - run.start.time)}"
    for moment, text in verdict.evidence:
        yield from _wrapped(text, "          " if moment is None else f"{clock_time(moment, run.start.time):<10}")
    for change in verdict.changes:
        yield from _wrapped(f"change {change.path}: {change.old or '?'} -> {change.new} ({change.reason})", "          ")
    if verdict.hint:
        yield from _wrapped(verdict.hint, "          ")
    if run.samples:
        yield ""
        yield from _wrapped(" -> ".join(f"{stretch.phase} {format_span(stretch.end - stretch.begin)}" for stretch in phases_of(run)))
    yield from _plots(run, bold, colours=colours)
    yield from ("", bold("Figures"))
    for figure in figures_of(run):
        when = "" if figure.time is None else clock_time(figure.time, run.start.time)
        limit = f"of {figure.limit_text}" if figure.limit_text else ""
        yield f"  {figure.label:<38}  {figure.text:>12}  {limit:<13} {when}".rstrip()
    yield from ("", bold("Events"))
    for event in run.events:
        yield from _wrapped(
            f"{event.kind}: {event.text}" if event.text != event.kind else event.kind, f"  {clock_time(event.time, run.start.time)}  "
        )
    yield from ("", bold("Last log lines"))
    yield from (f"  {_safe(line)}" for line in run.log[-_LOG_LINES:])


def _plots(run: Run, bold: Callable[[str], str], *, colours: bool) -> Iterator[str]:
    """Yield the plots that show something, and then the titles of the others."""
    few, zero = [], []
    for plot in plots_of(run):
        if max(sum(value is not None for value in line.values) for line in plot.lines) < _LEAST_POINTS:
            few.append(plot.title)
        elif not any(known_values(line.values for line in plot.lines)):
            zero.append(plot.title)
        else:
            yield ""
            yield from _drawn(run, plot, bold, colours=colours)
    for reason, titles in ((f"Not drawn (fewer than {_LEAST_POINTS} samples)", few), ("Not drawn (always 0)", zero)):
        if titles:
            yield ""
            yield from _wrapped(f"{reason}: {'; '.join(titles)}")


def _drawn(run: Run, plot: Plot, bold: Callable[[str], str], *, colours: bool) -> Iterator[str]:
    """Yield one plot: its title, its lines, its axes, and its legend by colour or order."""
    times = [sample.time for sample in samples_of(run)]
    begin, end = min(run.start.time, times[0]), max(last_time(run), times[-1], run.start.time + 1)
    top = max(plot.peak, float(plot.limit or 0) if plot.limit_fits else 0.0, 0.1 if plot.unit == "share" else 0.0) or 1.0
    figure = plotille.Figure()
    figure.width, figure.height, figure.with_colors, figure.origin = _WIDTH, _HEIGHT, colours, False
    figure.set_x_limits(begin, end)
    figure.set_y_limits(0, top * 1.05)
    figure.x_label = figure.y_label = ""
    render = format_figure(plot.unit)
    figure.y_ticks_fkt = lambda low, _: f"{render(max(0.0, low)):>10}"
    figure.x_ticks_fkt = lambda low, _: clock_time(low, low)
    lines = _stacked(plot.lines) if plot.stacked else plot.lines
    for line, colour in zip(lines, _COLOURS * 2, strict=False):
        known = _thinned([(time, value) for time, value in zip(times, line.values, strict=True) if value is not None])
        figure.plot([time for time, _ in known], [value for _, value in known], lc=colour if colours else None)
    if plot.limit is not None and plot.limit_fits:
        figure.plot([begin, end], [plot.limit, plot.limit], lc="red" if colours else None)
    yield bold(plot.title) + (f"; {plot.limit_label} {render(plot.limit)}" if plot.limit is not None else "")
    *rows, axis, marks = figure.show().splitlines()[1:]
    yield from (line.rstrip() for line in rows)
    yield axis.removesuffix("> ()")[:_COLUMNS]  # the x axis is time and needs no label
    yield marks[: _COLUMNS - 8].rstrip()  # without the last tick label, which would not fit
    names = [plotille.color(line.label, fg=colour, no_color=not colours) for line, colour in zip(lines, _COLOURS * 2, strict=False)]
    yield f"{'':13}{', '.join(names)}"


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the lowest and the highest point of each stretch narrower than a dot.

    No more is visible, and a day is drawn within seconds.
    """
    size = len(points) // (4 * _WIDTH) + 1
    stretches = (points[first : first + size] for first in range(0, len(points), size))
    return [point for part in stretches for point in sorted({min(part, key=itemgetter(1)), max(part, key=itemgetter(1))})]


def _stacked(lines: tuple[PlotLine, ...]) -> tuple[PlotLine, ...]:
    """Return each line as the sum of itself and the lines before it."""
    rows = [[0.0] * len(lines[0].values)]
    for line in lines:
        rows.append([base + (value or 0) for base, value in zip(rows[-1], line.values, strict=True)])
    labels = [line.label if not number else f"+ {line.label}" for number, line in enumerate(lines)]
    return tuple(line._replace(label=label, values=tuple(row)) for line, label, row in zip(lines, labels, rows[1:], strict=True))


def _wrapped(text: str, before: str = "") -> list[str]:
    return textwrap.wrap(_safe(text), _COLUMNS, initial_indent=before, subsequent_indent=" " * len(before), break_on_hyphens=False) or [
        before
    ]


def _safe(text: str) -> str:
    return printable(redact(text))
