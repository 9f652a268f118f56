"""`vllm-safe why NAME`: why a model last stopped, with the evidence and the setting to change."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import click

from vllm_safe.cli.main import config_option, json_option, name_argument
from vllm_safe.cli.table import align_columns
from vllm_safe.common.sizes import format_span
from vllm_safe.contract.recorded_run import Run
from vllm_safe.diagnose.verdict import Verdict
from vllm_safe.report.judged_run import choose_run, judge_run, recorded_runs, try_judge_run
from vllm_safe.report.local_times import clock_time, date_time

_WIDE = 110  # characters of a sentence in the list
_RECORDED = 6.0  # seconds within which the recorder finds the cause of an end, and writes it


@click.command(name="why")
@name_argument
@click.option(
    "--run", "which", metavar="N|ID", default="1", show_default=True, help="The run: 1 is the last, 2 the one before it, or an ID."
)
@click.option("--list", "as_list", is_flag=True, help="List every recorded run, with one line each.")
@json_option
@config_option
def command(name: str, which: str, config_path: Path, *, as_list: bool, as_json: bool) -> None:
    """Show why NAME last stopped: the verdict, the evidence for it, and the setting to change."""
    runs = recorded_runs(name, config_path, "why")
    if as_list:
        _list(name, runs, as_json=as_json)
        return
    chosen = choose_run(name, runs, which)
    run, verdict = judge_run(name, chosen, wait=_RECORDED)
    before = None
    if verdict.code == "running" and which == "1" and len(runs) > 1:
        before = try_judge_run(name, runs[1])
    if as_json:
        click.echo(
            json.dumps(_for_program(run, verdict) | {"before": _for_program(*before) if before else None}, indent=2, ensure_ascii=False)
        )
        return
    _show(run, verdict)
    if before:
        click.echo(f"\nWhy the run before it stopped ({before[0].start.run}):")
        _show(*before)


def _list(name: str, runs: tuple[str, ...], *, as_json: bool) -> None:
    judged = [(number, run, try_judge_run(name, run)) for number, run in enumerate(runs, 1)]
    if as_json:
        values = [
            {"number": number, "run": run} | (_for_program(*found) if found else {"code": "unreadable"}) for number, run, found in judged
        ]
        click.echo(json.dumps(values, indent=2, ensure_ascii=False))
        return
    rows = [("", "started", "lasted", "", "why")]
    for number, run, found in judged:
        if found is None:
            rows.append((str(number), run, "", "unreadable", ""))
            continue
        recorded, verdict = found
        sentence = verdict.sentence if len(verdict.sentence) <= _WIDE else f"{verdict.sentence[: _WIDE - 3]}..."
        rows.append((str(number), date_time(recorded.start.time), _lasted(recorded, verdict), verdict.code, sentence))
    click.echo("\n".join(align_columns(rows)))


def _show(run: Run, verdict: Verdict) -> None:
    """Print the verdict, then the evidence for it, then the settings to change."""
    colour = {"bad": "red", "good": "green"}.get(verdict.tone)
    click.echo(click.style(verdict.sentence, bold=True, fg=colour))
    started = f"started {date_time(run.start.time)}"
    restart = f", automatic restart {run.start.restart}" if run.start.restart else ""
    ended = "" if verdict.code == "running" else f", ended {date_time(verdict.when)}, after {_lasted(run, verdict)}"
    click.echo(f"  {started}{ended}{restart}")
    if verdict.evidence:
        click.echo(click.style("Evidence", bold=True))
        times = ("" if fact.time is None else clock_time(fact.time, run.start.time) for fact in verdict.evidence)
        click.echo("\n".join(align_columns(zip(times, (fact.text for fact in verdict.evidence), strict=True))))
    if verdict.changes:
        click.echo(click.style("What to change in config.yaml", bold=True))
        rows = ((change.path, change.old or "?", "->", change.new, change.reason) for change in verdict.changes)
        click.echo("\n".join(align_columns(rows)))
    if verdict.hint:
        click.echo(f"  {verdict.hint}")


def _lasted(run: Run, verdict: Verdict) -> str:
    until = time.time() if verdict.code == "running" else verdict.when
    return format_span(max(0.0, until - run.start.time))


def _for_program(run: Run, verdict: Verdict) -> dict[str, Any]:
    return {
        "name": run.start.name,
        "run": run.start.run,
        "started": run.start.time,
        "restart": run.start.restart,
        "code": verdict.code,
        "sentence": verdict.sentence,
        "when": verdict.when,
        "evidence": [fact._asdict() for fact in verdict.evidence],
        "changes": [change._asdict() for change in verdict.changes],
        "hint": verdict.hint,
    }
