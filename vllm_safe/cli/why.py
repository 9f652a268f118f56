"""`vllm-safe why NAME`: why it stopped last time, with the evidence and the setting to change."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import click

from vllm_safe.cli.main import config_option, json_option, name_argument
from vllm_safe.cli.table import align_columns
from vllm_safe.common.errors import ConfigError, Failure, Misuse
from vllm_safe.common.sizes import format_span
from vllm_safe.config.reader import load
from vllm_safe.contract.recorded_run import Run
from vllm_safe.contract.state_file import state_file
from vllm_safe.decide.start_checks import require_model
from vllm_safe.diagnose.diagnosis import decide_why, decide_why_down
from vllm_safe.diagnose.verdict import Verdict
from vllm_safe.record.run_reader import list_runs, read_run, with_end
from vllm_safe.report.local_times import clock_time, date_time

_BOOT = Path("/proc/sys/kernel/random/boot_id")
_WIDE = 110  # characters of a sentence in a list
_RECORDED = 6.0  # seconds after an end in which the recorder finds out who killed it, and writes it down


@click.command(name="why")
@name_argument
@click.option("--run", "which", metavar="N|ID", default="1", show_default=True, help="Of which run: 1 is the last, 2 the one before it.")
@click.option("--list", "as_list", is_flag=True, help="Every recorded run, in one line each.")
@json_option
@config_option
def command(name: str, which: str, config_path: Path, *, as_list: bool, as_json: bool) -> None:
    """Say why NAME stopped last time: the verdict, the evidence for it, and the setting to change."""
    runs = recorded_runs(name, config_path)
    if as_list:
        _list(name, runs, as_json=as_json)
        return
    chosen = choose_run(name, runs, which)
    run, verdict = judge_run(name, chosen, wait=_RECORDED)
    before = None
    if verdict.code == "running" and which == "1" and len(runs) > 1:
        before = _try_judge(name, runs[1])
    if as_json:
        click.echo(
            json.dumps(_for_program(run, verdict) | {"before": _for_program(*before) if before else None}, indent=2, ensure_ascii=False)
        )
        return
    _show(run, verdict)
    if before:
        click.echo(f"\nWhy it stopped before that ({before[0].start.run}):")
        _show(*before)


def recorded_runs(name: str, config_path: Path) -> tuple[str, ...]:
    """The recorded runs, newest first. Failure if there are none, with what to do."""
    try:
        runs = list_runs(name)
    except Failure as failure:
        asked = click.get_current_context().info_name  # `report` asks too
        raise failure if os.geteuid() == 0 else Failure(failure.message, hint=f"sudo vllm-safe {asked} {name}") from None
    if not runs:
        _check_name(name, config_path)
        if os.path.lexists(state_file(name)):  # in a folder of user vllm: no link is followed
            said = "it was started, and the recorder has not written yet"
            raise Failure(f"nothing is recorded of {name}: {said}", hint=f"ask again soon; systemctl status vllm-safe-record@{name}")
        raise Failure(f"nothing is recorded of {name}: it has not been started yet", hint=f"systemctl start vllm@{name}")
    return runs


def _check_name(name: str, config_path: Path) -> None:
    """Misuse if the configuration can be read, and has no such model."""
    try:
        config = load(config_path)
    except (ConfigError, Failure, OSError):
        return
    require_model(config, name)


def choose_run(name: str, runs: tuple[str, ...], which: str) -> str:
    """The run that `which` names: its number, 1 for the last, or its id. Misuse if there is none."""
    if which in runs:
        return which
    if which.isdecimal() and len(which) < 6 and 1 <= int(which) <= len(runs):
        return runs[int(which) - 1]
    raise Misuse(f"{name} has no run {which}; {len(runs)} are recorded", hint=f"vllm-safe why {name} --list")


def judge_run(name: str, chosen: str, *, wait: float = 0.0) -> tuple[Run, Verdict]:
    """A recorded run, and why it stopped. Of one that was only refused as one restart too many: the run that ended before it.

    wait: seconds for the recorder to write the end of one that is over.
    """
    run, verdict = _judge_alone(name, chosen, wait=wait)
    if verdict.code == "gave-up":
        before = next((_try_judge(name, older) for older in list_runs(name) if older < chosen), None)
        if before and before[1].code not in {"gave-up", "running"}:
            return before[0], decide_why_down(verdict, *before)
    return run, verdict


def _judge_alone(name: str, chosen: str, *, wait: float = 0.0) -> tuple[Run, Verdict]:
    run, boot, until = read_run(name, chosen), _BOOT.read_text(encoding="ascii").strip(), time.monotonic() + wait
    while (ended := with_end(run, boot, time.time())) is not run and time.monotonic() < until:
        time.sleep(0.2)
        run = read_run(name, chosen)
    return run, decide_why(ended, boot, time.time())


def _try_judge(name: str, chosen: str) -> tuple[Run, Verdict] | None:
    """A run by itself, if it can be read."""
    try:
        return _judge_alone(name, chosen)
    except Failure:
        return None


def _list(name: str, runs: tuple[str, ...], *, as_json: bool) -> None:
    judged = [(number, run, _try_judge(name, run)) for number, run in enumerate(runs, 1)]
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
        said = verdict.sentence if len(verdict.sentence) <= _WIDE else f"{verdict.sentence[: _WIDE - 3]}..."
        rows.append((str(number), date_time(recorded.start.time), _lasted(recorded, verdict), verdict.code, said))
    click.echo("\n".join(align_columns(rows)))


def _show(run: Run, verdict: Verdict) -> None:
    """The verdict first, then what proves it, then what to change."""
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
