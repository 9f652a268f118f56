"""`vllm-safe drill`: a memory hog under the limits of a model, while logins are timed, with a result of PASS or FAIL."""

from __future__ import annotations

import json
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from vllm_safe.apply.guard_steps import guard_steps
from vllm_safe.apply.situation import read_earlyoom, read_units
from vllm_safe.apply.start_steps import prepare_steps
from vllm_safe.cli.main import config_option, dry_run_option, json_option, model_names, need_root
from vllm_safe.cli.table import align_columns
from vllm_safe.common.errors import EXIT_FAILED, Misuse
from vllm_safe.common.run_lock import hold_lock
from vllm_safe.common.sizes import format_size
from vllm_safe.common.steps import carry_out
from vllm_safe.config.model_names import require_model
from vllm_safe.config.reader import load
from vllm_safe.decide.guard_settings import decide_guard
from vllm_safe.decide.limits import DecidedLimits, decide_budget
from vllm_safe.decide.preparation import decide_protection_of_all
from vllm_safe.drill.drill_checks import require_ready
from vllm_safe.drill.drill_decision import DrillRow, Hog, decide_hog, judge_drill
from vllm_safe.drill.drill_decision import drill_as_json as lines_as_json
from vllm_safe.drill.drill_run import DrillProgress, run_drill
from vllm_safe.drill.hog_unit import StartHog
from vllm_safe.host.host_facts import read_host


@click.command(name="drill")
@click.option("--seconds", type=click.FloatRange(10, 3600), default=60.0, show_default=True, help="How long the hog runs under full load.")
@click.option("--model", "name", metavar="NAME", shell_complete=model_names, help="Use the limits of this model.")
@json_option
@dry_run_option
@config_option
def command(seconds: float, name: str | None, config_path: Path, *, as_json: bool, dry_run: bool) -> int:
    """Run a memory hog that takes all memory a model may have, and time logins meanwhile.

    Without --model the hog has the limits of the only model, or those of the section `limits`. No model may run at the same time. Logins
    are compared with those on the idle machine, which are timed first. The drill also fails if the hog is killed, as the model would have
    been killed, too. Exit code: 0 PASS, 1 FAIL, 2 refused.
    """
    if not dry_run:
        need_root()
    config, host = load(config_path), read_host()
    if name is not None:
        require_model(config, name)
    elif len(config.models) == 1:
        (name,) = config.models
    budget = decide_budget(config, host)
    limits = budget.of(name or "")
    hog = decide_hog(limits, host.cpus)
    start = StartHog(hog, {**limits.properties, "IOSchedulingClass": limits.io_scheduling_class.value}, seconds)
    # The first steps of a start, so that the drill tests the present configuration.
    common = prepare_steps(decide_protection_of_all(config, budget), read_units(), read_earlyoom())
    protect = (*common, *guard_steps(decide_guard(config)))
    if dry_run:
        carry_out((*protect, start), dry_run=True, say=click.echo)
        return 0
    with _one_drill():
        require_ready(config, host, budget, name or "the hog")
        carry_out(protect, dry_run=False)
        course = _run(start, hog, seconds)
    return _report(course, hog, limits, as_json=as_json)


@contextmanager
def _one_drill() -> Iterator[None]:
    """Hold the lock for the only drill. SIGHUP and SIGTERM end the drill in order, as Ctrl-C does."""

    def refuse() -> None:
        raise Misuse("the drill was not started: another one is running")

    with hold_lock("drill", refuse):
        before = {number: signal.signal(number, signal.default_int_handler) for number in (signal.SIGHUP, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _run(start: StartHog, hog: Hog, seconds: float) -> DrillProgress:
    terminal = sys.stderr.isatty()

    def show(text: str) -> None:
        if terminal:
            click.echo(f"\r\033[K{text[: shutil.get_terminal_size().columns - 1]}", nl=False, err=True)

    try:
        return run_drill(start, hog, seconds, show)
    finally:
        show("")


def _report(course: DrillProgress, hog: Hog, limits: DecidedLimits, *, as_json: bool) -> int:
    lines = judge_drill(course.idle, course.drill, course.pressed)
    bad = [line.what for line in lines if not line.met]
    word = "FAIL" if bad else "PASS"
    if as_json:
        answer = {
            "result": word,
            "failed": bad,
            "seconds": course.seconds,
            "lines": lines_as_json(lines),
            "hog": {"size": hog.size, "ram": course.ram, "swap": course.swap, "pages_per_second": course.pages, "ended": course.ended},
            "limits": limits.properties,
            "recovered": course.recovered,
        }
        click.echo(json.dumps(answer, indent=2))
    else:
        click.echo("\n".join(_text(course, lines, limits)))
        click.secho(f"{word}: {', '.join(bad)}" if bad else word, fg="red" if bad else "green", bold=True)
    return EXIT_FAILED if bad else 0


def _text(course: DrillProgress, lines: tuple[DrillRow, ...], limits: DecidedLimits) -> Iterator[str]:
    yield from align_columns((("", "idle", "drill", "bound", ""), *(line.cells() for line in lines)), indent="")
    yield ""
    yield f"The hog had {format_size(course.ram)} of RAM (limit {format_size(limits.memory_max.value)}),"
    yield f"{format_size(course.swap)} of swap (limit {format_size(limits.swap_max.value)}), and touched {course.pages:.0f} pages a second."
    if course.ended is not None:
        yield f"It was killed after {course.ended:.0f} s, as a model would have been. See:"
        yield "journalctl -b -k -u vllm-safe-drill -u vllm-safe-guard -u earlyoom"
    back = "not within a minute" if course.recovered is None else f"{course.recovered:.0f} s"
    yield f"Time after its end until logins were as fast as before: {back}."
    yield ""
