"""The command line: a group that imports a command only when it is used, and the only place that prints errors."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import click
from click.exceptions import NoArgsIsHelpError
from click.shell_completion import CompletionItem

from vllm_safe.cli.entry import COMMANDS, HELP
from vllm_safe.common.errors import EXIT_FAILED, EXIT_MISUSE, ConfigError, Failure, Misuse

EXIT_INTERRUPTED = 130  # 128 + SIGINT, as a shell reports it

_AnyCommand = TypeVar("_AnyCommand", bound=Callable[..., Any])


class SuggestingGroup(click.Group):
    """A group that suggests a command for a mistyped one. click 8.4 does so itself, but only for commands that are imported."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that the arguments begin with. Raises UsageError with a suggestion if there is none."""
        name, names = args[0], self.list_commands(ctx)
        if name not in names and not name.startswith("-") and not ctx.resilient_parsing:
            from vllm_safe.config.spelling import closest

            near = closest(name.lower(), names)
            ctx.fail(f"No such command {name!r}." + (f" Did you mean {near!r}?" if near else ""))
        return super().resolve_command(ctx, args)


class LazyGroup(SuggestingGroup):
    """The commands of entry.COMMANDS, each of which is imported when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 -- click's signature
        """Return the names, in the order in which a newcomer needs them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 -- click's signature
        """Return the command of that name, or None."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f"vllm_safe.cli.{cmd_name}").command
        return command

    def get_help(self, ctx: click.Context) -> str:  # noqa: ARG002 -- click's signature
        """Return the text that entry.py prints."""
        return HELP

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Return the command names that TAB offers."""
        names = [CompletionItem(name, help=text) for name, text in COMMANDS.items() if name.startswith(incomplete)]
        return names + click.Command.shell_complete(self, ctx, incomplete)


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Parse the command line. This text is never shown: the help is entry.HELP."""


@cli.result_callback()
def flush(result: object) -> object:
    """Flush stdout while click still handles errors, so that a reader that closed the pipe (head, less) is not reported as an error."""
    sys.stdout.flush()
    return result


def model_names(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Return the model names that TAB offers: from the configuration and the recorded runs, as far as they can be read. Prints nothing."""
    from vllm_safe.common.paths import RUNS
    from vllm_safe.config.reader import DEFAULT_PATH, load

    names: set[str] = set()
    with suppress(Failure, OSError):
        names.update(load(context.params.get("config_path") or DEFAULT_PATH).models)
    with suppress(OSError):
        names.update(folder.name for folder in RUNS.iterdir())
    return sorted(name for name in names if name.startswith(incomplete))


def name_argument(command: _AnyCommand) -> _AnyCommand:
    """Give a command the argument NAME: a model."""
    return click.argument("name", shell_complete=model_names)(command)


def optional_name_argument(command: _AnyCommand) -> _AnyCommand:
    """Give a command the optional argument NAME: a model, or None."""
    return click.argument("name", required=False, shell_complete=model_names)(command)


def config_option(command: _AnyCommand) -> _AnyCommand:
    """Give a command --config FILE, passed to it as `config_path`."""
    from vllm_safe.config.reader import DEFAULT_PATH

    option = click.option(
        "--config",
        "config_path",
        metavar="FILE",
        type=click.Path(path_type=Path, readable=False),  # the reader of the configuration reports it in more detail
        default=DEFAULT_PATH,
        show_default=True,
        help="The configuration file.",
    )
    return option(command)


def dry_run_option(command: _AnyCommand) -> _AnyCommand:
    """Give a command --dry-run, passed to it as `dry_run`."""
    return click.option("--dry-run", is_flag=True, help="Print each step, and change nothing.")(command)


def json_option(command: _AnyCommand) -> _AnyCommand:
    """Give a command --json, passed to it as `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, with sizes in bytes.")(command)


def need_root() -> None:
    """Raise Misuse unless the user is root."""
    if os.geteuid() != 0:
        raise Misuse("this command must be run as root", hint=f"sudo {click.get_current_context().command_path} ...")


def main(arguments: list[str]) -> int:
    """Run one command line and return its exit code. Every error is printed to stderr."""
    try:
        code = cli.main(arguments, prog_name="vllm-safe", standalone_mode=False)
    except (Failure, click.UsageError, click.Abort, OSError) as error:
        return _report(error)
    except Exception as error:  # noqa: BLE001 -- an internal error is also one line, with its position
        frame = error.__traceback__
        while frame and frame.tb_next:
            frame = frame.tb_next
        where = f"{Path(frame.tb_frame.f_code.co_filename).name}:{frame.tb_lineno}" if frame else "?"
        return _report(Failure(f"internal error: {type(error).__name__}: {error} ({where})", hint="Please report this line as a bug."))
    return code if isinstance(code, int) else 0


def _report(error: Exception) -> int:
    """Print an error, and return the exit code for it."""
    message, hint, code = str(error), "", EXIT_FAILED
    match error:
        case Failure():
            hint, code = error.hint, error.exit_code
        case click.UsageError():
            message, code = error.format_message().rstrip("."), EXIT_MISUSE
            hint = f"see {error.ctx.command_path} --help" if error.ctx and not isinstance(error, NoArgsIsHelpError) else ""
        case click.Abort():
            message, code = "interrupted", EXIT_INTERRUPTED
        case OSError() if error.strerror:
            message = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    # Configuration errors begin with FILE:LINE:COLUMN, as editors and grep -n expect. The help text is not an error.
    prefix = "" if isinstance(error, (ConfigError, NoArgsIsHelpError)) else "vllm-safe: "
    for line in message.splitlines():
        click.echo(f"{prefix}{line}", err=True)
    for line in hint.splitlines():
        click.echo(f"  {line}", err=True)
    return code
