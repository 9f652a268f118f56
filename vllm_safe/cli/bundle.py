"""`vllm-safe bundle NAME`: what the other commands print about a model, as one file for an issue."""

from __future__ import annotations

import io
import platform
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import click

from vllm_safe import __version__
from vllm_safe.bundle.bundle_text import BundlePart, bundle_text
from vllm_safe.bundle.identity import Identity
from vllm_safe.bundle.identity_facts import read_identity
from vllm_safe.bundle.journal_facts import read_kernel_journal, read_unit_journal
from vllm_safe.cli.entry import COMMANDS
from vllm_safe.cli.main import config_option, main, name_argument
from vllm_safe.common.errors import ConfigError, Failure
from vllm_safe.common.systemctl import environment_of, show_properties
from vllm_safe.config.model_names import require_model
from vllm_safe.config.reader import load
from vllm_safe.contract.recorded_run import Run
from vllm_safe.decide.limits import unit_of
from vllm_safe.record.run_reader import list_runs
from vllm_safe.report.judged_run import judge_run, recorded_runs
from vllm_safe.report.report_file import write_new_file
from vllm_safe.report.text_report import render_text

# The commands whose output is in a bundle, in this order, with what it is of. One that takes a model gets its name.
_COMMANDS = {
    "plan": "Will it start",
    "check": "This machine and each model",
    "show": "What a start would run",
    "why": "Why it last stopped",
}
_OF_ALL = {"check"}
_OPTIONS = {"plan": ["--offline"]}  # a bundle is made from what is on this machine


@click.command(name="bundle")
@name_argument
@click.option("-o", "--output", metavar="FILE", type=click.Path(path_type=Path), help="The file to write; - for stdout.")
@config_option
def command(name: str, config_path: Path, output: Path | None) -> None:
    """Write one text file for an issue: what plan, check, show, why and report print, and the end of the journal.

    Secrets, names of machines and people, and addresses are left out; the file says first what is in it, and what is not. An existing file
    is never overwritten. Run it as root: others may not read the recorded runs and the journal.
    """
    _require(name, config_path)
    shown = show_properties([unit_of(name)], ("Id", "Environment"))
    identity = read_identity(config_path, environment_of(shown.get(unit_of(name), {})))
    parts = [_printed(each, name, config_path) for each in _COMMANDS]
    parts += [_report(name, config_path, identity), _journal("The journal of it, and of its guard", f"journalctl -u vllm@{name} ...", name)]
    parts.append(_journal("The kernel's messages about GPUs and memory", "journalctl -k -g ..."))
    text = bundle_text(_heading(name), parts, identity)
    if output == Path("-"):
        click.echo(text, nl=False)
        return
    path = output or Path(f"{name}-bundle-{time.strftime('%Y%m%dT%H%M%S')}.txt")
    write_new_file(path, text)
    click.echo(f"wrote {path}: read it, then paste it into the issue")


def _require(name: str, config_path: Path) -> None:
    """Raise Failure if there is neither a model nor a recorded run of that name. A mistake in the configuration is part of a bundle."""
    try:
        config = load(config_path)
    except (ConfigError, OSError):
        return
    try:
        recorded = bool(list_runs(name))
    except Failure:
        recorded = False
    if not recorded:
        require_model(config, name)


def _heading(name: str) -> str:
    try:
        system = platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        system = "an unknown system"
    made = time.strftime("%Y-%m-%d %H:%M", time.gmtime())
    return f"vllm-safe bundle of {name}, {made} UTC: vllm-safe {__version__}, {system}, Linux {platform.release()}, {platform.machine()}"


def _printed(command_name: str, name: str, config_path: Path) -> BundlePart:
    """Run a command of vllm-safe within this process, and return what it prints."""
    arguments = [command_name, *([] if command_name in _OF_ALL else [name]), *_OPTIONS.get(command_name, [])]
    source = f"vllm-safe {' '.join(arguments)}"
    if command_name not in COMMANDS:
        return BundlePart(_COMMANDS[command_name], source, absent="this version has no such command")
    text, code = _captured(lambda: main([*arguments, "--config", str(config_path)]))
    return BundlePart(_COMMANDS[command_name], source + (f"; exit code {code}" if code else ""), text)


def _captured(run: Callable[[], int]) -> tuple[str, int]:
    printed = io.StringIO()
    with redirect_stdout(printed), redirect_stderr(printed):
        code = run()
    return printed.getvalue(), code


def _report(name: str, config_path: Path, identity: Identity) -> BundlePart:
    """Return the report on the last run. It is cleaned before its lines are broken, since a name could be broken in two."""
    title, source = "The last run over time", f"vllm-safe report {name} --text"
    try:
        run, verdict = judge_run(name, recorded_runs(name, config_path, "report")[0])
    except Failure as failure:
        return BundlePart(title, source, absent=failure.message)
    return BundlePart(title, source, "\n".join(render_text(_clean_run(run, identity), _clean(verdict, identity), str, colours=False)))


def _clean_run(run: Run, identity: Identity) -> Run:
    """Clean all texts of a run; the log in one piece, since a key can have several lines. The samples have none."""
    log = tuple(identity.clean("\n".join(run.log)).split("\n"))
    return run._replace(start=_clean(run.start, identity), events=_clean(run.events, identity), end=_clean(run.end, identity), log=log)


def _clean(value: Any, identity: Identity) -> Any:  # noqa: ANN401 - a value of the same type
    """Return a value with all texts in it cleaned, whatever it is made of."""
    if isinstance(value, str):
        return identity.clean(value)
    if isinstance(value, dict):
        return {key: _clean(item, identity) for key, item in value.items()}
    if isinstance(value, tuple):
        items = [_clean(item, identity) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    return value


def _journal(title: str, source: str, name: str | None = None) -> BundlePart:
    tail = read_kernel_journal() if name is None else read_unit_journal(name)
    absent = "" if tail.text else "there is nothing, or this user may not read it" if tail.whole else "it could not be read in time"
    return BundlePart(title, source, tail.text, absent, is_log=True)
