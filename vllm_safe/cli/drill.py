"""`vllm-safe drill`: a hog under the limits of a model, while logins are timed; pass or fail."""

from __future__ import annotations

import json
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vllm_safe.cli.main import config_option, dry_run_option, json_option, model_names, need_root
from vllm_safe.common.errors import EXIT_FAILED, Misuse

if TYPE_CHECKING:
    from vllm_safe.config.settings import Config
    from vllm_safe.decide.limits import DecidedLimits
    from vllm_safe.drill.drill_decision import DrillRow, Hog
    from vllm_safe.drill.drill_run import DrillProgress
    from vllm_safe.drill.hog_unit import StartHog
    from vllm_safe.host.host_facts import Host


@click.command(name="drill")
@click.option("--seconds", type=click.FloatRange(10, 3600), default=60.0, show_default=True, help="How long the hog presses.")
@click.option("--model", "name", metavar="NAME", shell_complete=model_names, help="Under the limits of this model.")
@json_option
@dry_run_option
@config_option
def command(seconds: float, name: str | None, config_path: Path, *, as_json: bool, dry_run: bool) -> int:
    """Have a hog take all memory that a model may have, and time logins meanwhile.

    Without --model it has the limits of the only model, or those of the section `limits`. No model may run meanwhile. Logins are compared
    with those on the idle machine, which are timed first. A hog that is killed fails too: the model would have been. Exit code: 0 PASS,
    1 FAIL, 2 refused.
    """
    from vllm_safe.apply.guard_steps import guard_steps
    from vllm_safe.apply.situation import read_earlyoom_env, read_units
    from vllm_safe.apply.start_steps import prepare_steps
    from vllm_safe.common.steps import carry_out
    from vllm_safe.config.reader import load
    from vllm_safe.decide.guard_settings import decide_guard
    from vllm_safe.decide.limits import decide_limits
    from vllm_safe.decide.start_checks import decide_protection_of_all, require_model
    from vllm_safe.drill.drill_decision import decide_hog
    from vllm_safe.drill.hog_unit import StartHog
    from vllm_safe.host.host_facts import read_host

    if not dry_run:
        need_root()
    config, host = load(config_path), read_host()
    if name is not None:
        require_model(config, name)
    elif len(config.models) == 1:
        (name,) = config.models
    limits = decide_limits(config, host, name or "")
    hog = decide_hog(limits, host.cpus)
    start = StartHog(hog, {**limits.properties, "IOSchedulingClass": limits.io_scheduling_class.value}, seconds)
    # What a start of the model does first: the drill is of the configuration as it is now.
    common = prepare_steps(decide_protection_of_all(config, host), read_units(config, host), read_earlyoom_env())
    protect = (*common, *guard_steps(decide_guard(config)))
    if dry_run:
        carry_out((*protect, start), dry_run=True, say=click.echo)
        return 0
    with _one_drill():
        _refuse(config, host, name or "the hog")
        carry_out(protect, dry_run=False)
        course = _run(start, hog, seconds)
    return _report(course, hog, limits, as_json=as_json)


def _refuse(config: Config, host: Host, name: str) -> None:
    """Raise Misuse if the machine is not one on which a drill under the limits of `name` shows anything, or would do harm."""
    from vllm_safe.common.findings import Level
    from vllm_safe.common.kernfs import MEMORY_PRESSURE, parse_stall_share, read_kernel_file
    from vllm_safe.common.systemctl import show_properties
    from vllm_safe.decide.start_checks import SWAP_SERVICE, Situation, check_cgroups, check_memory, check_swap
    from vllm_safe.drill.drill_decision import check_ready
    from vllm_safe.drill.hog_unit import occupants
    from vllm_safe.host.start_facts import StartFacts

    ground = StartFacts(swap_file=str(config.swap.file.resolve()), units=show_properties([SWAP_SERVICE], ("Id", "StatusText")))
    situation = Situation(config, host, name, ground)
    checks = [check(situation) for check in (check_cgroups, check_memory, check_swap)]
    pressure = parse_stall_share(read_kernel_file(MEMORY_PRESSURE), "some")
    for finding in (*checks, check_ready(config, host, occupants(), pressure)):
        if finding.level is Level.FAIL or (finding.level is Level.WARN and finding is checks[0]):
            raise Misuse(f"no drill: {finding.what}", hint=finding.do_next)


@contextmanager
def _one_drill() -> Iterator[None]:
    """Alone; and a terminal that has gone, or a SIGTERM, ends it as Ctrl-C does: in order."""
    from vllm_safe.common.run_lock import hold_lock

    def refuse() -> None:
        raise Misuse("no drill: another one is under way")

    with hold_lock("drill", refuse):
        before = {number: signal.signal(number, signal.default_int_handler) for number in (signal.SIGHUP, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _run(start: StartHog, hog: Hog, seconds: float) -> DrillProgress:
    from vllm_safe.drill.drill_run import run_drill

    terminal = sys.stderr.isatty()

    def show(text: str) -> None:
        if terminal:
            click.echo(f"\r\033[K{text[: shutil.get_terminal_size().columns - 1]}", nl=False, err=True)

    try:
        return run_drill(start, hog, seconds, show)
    finally:
        show("")


def _report(course: DrillProgress, hog: Hog, limits: DecidedLimits, *, as_json: bool) -> int:
    from vllm_safe.drill.drill_decision import drill_as_json as lines_as_json
    from vllm_safe.drill.drill_decision import judge_drill

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
    from vllm_safe.cli.table import align_columns
    from vllm_safe.common.sizes import format_size

    yield from align_columns((("", "idle", "drill", "bound", ""), *(line.cells() for line in lines)), indent="")
    yield ""
    yield f"The hog had {format_size(course.ram)} of RAM (limit {format_size(limits.memory_max.value)}),"
    yield f"{format_size(course.swap)} of swap (limit {format_size(limits.swap_max.value)}), and touched {course.pages:.0f} pages a second."
    if course.ended is not None:
        yield f"It was killed after {course.ended:.0f} s, as a model would have been:"
        yield "journalctl -b -k -u vllm-safe-drill -u vllm-safe-guard -u earlyoom"
    back = "not within a minute" if course.recovered is None else f"{course.recovered:.0f} s"
    yield f"Until a login was as fast as before, after its end: {back}."
    yield ""
