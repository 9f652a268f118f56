"""A report as one self-contained HTML file: its text is readable without scripts, its plots are drawn from embedded JSON.

Everything from the run is data. Text is escaped, the JSON cannot close its element, and the Content-Security-Policy of the page allows
only the two scripts that it names by their hashes.
"""

from __future__ import annotations

import hashlib
import json
import re
from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping
from html import escape
from importlib.resources import files
from typing import Any

from vllm_safe import __version__
from vllm_safe.common.sizes import format_exact, format_span
from vllm_safe.contract.recorded_run import Event, Run
from vllm_safe.diagnose.verdict import Verdict
from vllm_safe.report.figures import figures_of, format_figure
from vllm_safe.report.local_times import clock_time, date_time, offset_at, zone_at
from vllm_safe.report.redact import redact
from vllm_safe.report.series import Plot, known_values, last_time, phases_of, plots_of, samples_of

MARK = "<!-- A report of vllm-safe -->"  # the line by which an earlier report is recognised
_BAD = frozenset({"kernel-oom", "earlyoom", "nvidia", "stall", "hang", "killing"})
_IN_PHASES = frozenset({"start", "phase"})  # kinds of events that the phases on the plots show already
_ERROR = re.compile(r"\b(?:ERROR|CRITICAL|FATAL|Traceback|\w+Error|Killed|out of memory)\b")
_MANY = 5  # lines of one plot, from which on the caption omits the peak of each: the table of figures has them
_UNSAFE = {ord(char): f"\\u{ord(char):04x}" for char in "<>&"}


def render_html(run: Run, verdict: Verdict) -> str:
    """Return the whole HTML file."""
    plots = plots_of(run)
    library, own = _asset("uplot/uPlot.iife.min.js"), _asset("page.js")
    style = _asset("uplot/uPlot.min.css") + _asset("page.css")
    policy = f"default-src 'none'; script-src {_hash(library)} {_hash(own)}; style-src {_hash(style)}; base-uri 'none'; form-action 'none'"
    body = "\n".join([*_top(run, verdict), *_timeline(run, plots), *_events(run), *_figures(run), *_log(run), *_facts(run)])
    return f"""<!doctype html>
{MARK}
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="referrer" content="no-referrer">
<title>{_text(verdict.sentence)}</title>
<style>{style}</style>
</head>
<body>
<main>
{body}
<footer>Made by vllm-safe {__version__} from recorded data. Times are in the server's time zone ({_text(zone_at(run.start.time))}).
Text that looks like a key or a token was removed; review the report nevertheless before you send it.</footer>
</main>
<script type="application/json" id="run">{_json(_data(run, plots))}</script>
<script>{library}</script>
<script>{own}</script>
</body>
</html>
"""


def tone_of(event: Event) -> str:
    """Return how an event is shown: "bad", "guard", or "" for an ordinary one."""
    if event.kind in _BAD or (event.kind == "guard" and event.data.get("act") == "kill"):
        return "bad"
    return "guard" if event.kind == "guard" else ""


def _data(run: Run, plots: Iterable[Plot]) -> dict[str, Any]:
    """Return the data that the script draws. Times are Unix seconds; `offset` is the server's offset from UTC in seconds."""
    plots = tuple(plots)
    return {
        "name": run.start.name,
        "run": run.start.run,
        "begin": run.start.time,
        "end": last_time(run),
        "offset": offset_at(run.start.time),
        "time": [sample.time for sample in samples_of(run)],
        "columns": {line.key: line.values for plot in plots for line in plot.lines},
        "plots": [
            {
                "key": plot.key,
                "unit": plot.unit,
                "stacked": plot.stacked,
                "peak": plot.peak,
                "limit": plot.limit,
                "limit_label": plot.limit_label,
                "limit_drawn": plot.limit_fits,
                "lines": [{"key": line.key, "label": line.label} for line in plot.lines],
            }
            for plot in plots
        ],
        "phases": [stretch._asdict() for stretch in phases_of(run)],
        "events": [
            {"number": number, "time": event.time, "tone": tone_of(event)}
            for number, event in enumerate(run.events, 1)
            if event.kind not in _IN_PHASES
        ],
    }


def _top(run: Run, verdict: Verdict) -> Iterator[str]:
    yield f'<header class="{verdict.tone}">'
    yield f'<p class="where"><b>{_text(run.start.name)}</b> · run <span class="mono">{_text(run.start.run)}</span></p>'
    yield f"<h1>{_text(verdict.sentence)}</h1>"
    span = format_span(last_time(run) - run.start.time)
    until = f"ended {clock_time(run.end.time, run.start.time)}, after {span}" if run.end else f"recorded until {span} later"
    restart = f" This was automatic restart {run.start.restart}." if run.start.restart else ""
    yield f'<p class="soft">Started {date_time(run.start.time)}, {until}.{restart}</p>'
    if verdict.hint:
        yield f"<p><b>{_text(verdict.hint)}</b></p>"
    yield "</header>"
    links = {"timeline": "Timeline", "events": "Events", "figures": "Figures", "lines": "Last log lines", "facts": "Machine and settings"}
    yield f'<nav aria-label="Sections">{"".join(f"""<a href="#{anchor}">{title}</a> """ for anchor, title in links.items())}</nav>'
    if verdict.changes:
        yield '<h2>What to change</h2><table class="changes">'
        yield "<thead><tr><th>In config.yaml</th><th>Now</th><th>Suggested</th><th></th></tr></thead><tbody>"
        for change in verdict.changes:
            yield f"<tr><td><code>{_text(change.path)}</code></td><td><code>{_text(change.old or '?')}</code></td>"
            yield f'<td><code class="new">{_text(change.new)}</code></td>'
            yield f"<td>{_text(change.reason)}</td></tr>"
        yield "</tbody></table>"
    if verdict.evidence:
        yield '<h2>Evidence</h2><ol class="plain evidence">'
        for moment, text in verdict.evidence:
            when = "" if moment is None else clock_time(moment, run.start.time)
            yield f'<li><span class="time soft">{when}</span><span>{_text(text)}</span></li>'
        yield "</ol>"


def _timeline(run: Run, plots: Iterable[Plot]) -> Iterator[str]:
    yield '<h2 id="timeline">Timeline</h2>'
    phases = phases_of(run)
    if not phases:
        yield '<p class="soft">No sample was recorded: the run ended before the first one.</p>'
        return
    yield '<ol class="plain phases" aria-label="Phases">'
    yield from (f"<li><b>{_text(stretch.phase)}</b> {format_span(stretch.end - stretch.begin)}</li>" for stretch in phases)
    yield "</ol>"
    yield '<p class="soft screen">The numbers above the first plot refer to the events below. Drag over a plot to zoom in; '
    yield "double-click to zoom out.</p>"
    for plot in plots:
        title, words = _text(plot.title), _text(_summary(plot))
        yield f'<figure id="plot-{plot.key}"><figcaption><h3>{title}</h3><p>{words}</p></figcaption>'
        yield f'<div class="canvas" role="img" aria-label="{title}, over time: {words}"></div></figure>'


def _summary(plot: Plot) -> str:
    """Return the peak of each line, or of the whole, as text; the minimum of a resource that should not run out."""
    render = format_figure(plot.unit)
    if plot.scarce:
        words = f"minimum {render(min(known_values(line.values for line in plot.lines)))}"
    elif plot.stacked or len(plot.lines) not in range(2, _MANY):
        words = f"peak {render(plot.peak)}"
    else:
        shown = [(line.label, max(value for value in line.values if value is not None)) for line in plot.lines]
        words = "peaks: " + ", ".join(f"{label} {render(most)}" for label, most in shown)
    return words + (f", {plot.limit_label} {render(plot.limit)}" if plot.limit is not None else "")


def _events(run: Run) -> Iterator[str]:
    yield '<h2 id="events">Events</h2>'
    if not run.events:
        yield '<p class="soft">None.</p>'
        return
    yield '<table><thead><tr><th class="number">No.</th><th>Time</th><th class="wide">After</th><th>What</th><th></th></tr></thead><tbody>'
    for number, event in enumerate(run.events, 1):
        after = format_span(max(0, event.time - run.start.time))
        yield f'<tr><td class="number">{number}</td><td class="time" data-time="{event.time}">{clock_time(event.time, run.start.time)}</td>'
        yield f'<td class="wide time">{after}</td><td class="kind {tone_of(event)}">{_text(event.kind)}</td>'
        yield f"<td>{_text(event.text)}</td></tr>"
    yield "</tbody></table>"


def _figures(run: Run) -> Iterator[str]:
    yield '<h2 id="figures">Figures</h2><table><thead><tr><th></th><th class="number">Value</th><th class="number">Limit</th>'
    yield "<th>Time</th></tr></thead><tbody>"
    for figure in figures_of(run):
        tight = " over" if figure.limit and figure.value >= 0.98 * figure.limit else ""
        when = "" if figure.time is None else clock_time(figure.time, run.start.time)
        yield f'<tr><th scope="row">{_text(figure.label)}</th>'
        yield f'<td class="number{tight}" data-key="{_text(figure.key)}" data-value="{figure.value}">{_text(figure.text)}</td>'
        yield f'<td class="number">{_text(figure.limit_text)}</td><td class="time">{when}</td></tr>'
    yield "</tbody></table>"


def _log(run: Run) -> Iterator[str]:
    yield '<h2 id="lines">Last log lines</h2>'
    if not run.log:
        yield '<p class="soft">No output of the server was recorded.</p>'
        return
    lines = (f'<span class="error">{_text(line)}</span>' if _ERROR.search(line) else _text(line) for line in run.log)
    yield '<pre id="log" tabindex="0" role="region" aria-label="Last log lines">' + "\n".join(lines) + "</pre>"


def _facts(run: Run) -> Iterator[str]:
    yield '<div class="pair" id="facts"><section><h2>Machine and versions</h2>'
    yield from _pairs(run.start.host, run.start.versions)
    yield "</section><section><h2>Limits and options</h2>"
    yield from _pairs(run.start.limits, run.start.args)
    yield "</section></div>"
    if run.end:
        end = {
            "systemd's result": run.end.result,
            "exit": f"{run.end.exit_code} {run.end.exit_status}".strip(),
            "cause": run.end.cause,
            **{f"memory.events {key}": value for key, value in run.end.memory_events.items()},
            **{f"memory.swap.events {key}": value for key, value in run.end.swap_events.items()},
        }
        yield "<section><h2>How it ended</h2>"
        yield from _pairs({key: value for key, value in end.items() if value != ""})
        yield "</section>"


_SIZES = frozenset({"memory", "swap", "memory_max", "swap_max"})


def _pairs(*parts: Mapping[str, Any]) -> Iterator[str]:
    """Yield one table of all parts. An option of vLLM with the name of a limit does not hide the limit."""
    yield "<table><tbody>"
    for key, value in (pair for part in parts for pair in part.items()):
        shown = format_exact(value) if key in _SIZES and isinstance(value, int) else value
        plain = shown if isinstance(shown, str) else json.dumps(shown, ensure_ascii=False)
        # The name is filtered together with the value, since only the name shows that the value of api-key is a secret.
        safe = redact(f"{key}: {plain}").partition(": ")[2]
        yield f'<tr><th scope="row">{_text(key)}</th><td class="mono">{_text(safe)}</td></tr>'
    yield "</tbody></table>"


def _asset(name: str) -> str:
    return files("vllm_safe.report").joinpath(name).read_text(encoding="utf-8")


def _hash(content: str) -> str:
    """Return the source expression by which a Content-Security-Policy allows an inline script or style."""
    return f"'sha256-{b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


def _json(value: object) -> str:
    """Return JSON that is safe in a script element with any content: without "</script" and "<!--"."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).translate(_UNSAFE)


def _text(text: str) -> str:
    """Return text for HTML or an attribute, without secrets and without characters that HTML does not allow."""
    return escape("".join(char if char.isprintable() or char in "\n\t" else "\ufffd" for char in redact(text)))
