"""The command line: a group that imports a command only when it is used, and the one place where errors are said."""

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
    """A group that says which of its commands was meant by a mistyped one: click 8.4 knows to, of commands that are imported."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that the arguments begin with."""
        name, names = args[0], self.list_commands(ctx)
        if name not in names and not name.startswith("-") and not ctx.resilient_parsing:
            from vllm_safe.config.spelling import closest

            near = closest(name.lower(), names)
            ctx.fail(f"No such command {name!r}." + (f" Did you mean {near!r}?" if near else ""))
        return super().resolve_command(ctx, args)


class LazyGroup(SuggestingGroup):
    """The commands of entry.COMMANDS, each imported when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 -- click's signature
        """The names, in the order in which a newcomer needs them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 -- click's signature
        """The command of that name, or None."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f"vllm_safe.cli.{cmd_name}").command
        return command

    def get_help(self, ctx: click.Context) -> str:  # noqa: ARG002 -- click's signature
        """The text that entry.py prints."""
        return HELP

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """The names that TAB offers."""
        names = [CompletionItem(name, help=text) for name, text in COMMANDS.items() if name.startswith(incomplete)]
        return names + click.Command.shell_complete(self, ctx, incomplete)


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Never shown: the text is entry.HELP."""


@cli.result_callback()
def flush(result: object) -> object:
    """Write out what is buffered while click still watches: a reader that had enough (head, less) is no error to report."""
    sys.stdout.flush()
    return result


def model_names(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """The names that TAB offers: of the configuration and of what was recorded. A mistake in either offers fewer, and says nothing."""
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
    """The same for a command that goes without it too, and is then passed None."""
    return click.argument("name", required=False, shell_complete=model_names)(command)


def config_option(command: _AnyCommand) -> _AnyCommand:
    """Give a command --config FILE, passed to it as `config_path`."""
    from vllm_safe.config.reader import DEFAULT_PATH

    option = click.option(
        "--config",
        "config_path",
        metavar="FILE",
        type=click.Path(path_type=Path, readable=False),  # the reader says it better
        default=DEFAULT_PATH,
        show_default=True,
        help="The configuration.",
    )
    return option(command)


def dry_run_option(command: _AnyCommand) -> _AnyCommand:
    """Give a command --dry-run, passed to it as `dry_run`."""
    return click.option("--dry-run", is_flag=True, help="Say each step, and do nothing.")(command)


def json_option(command: _AnyCommand) -> _AnyCommand:
    """Give a command --json, passed to it as `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="For a program; sizes in bytes.")(command)


def need_root() -> None:
    """Raise Misuse unless we are root."""
    if os.geteuid() != 0:
        raise Misuse("only root can do this", hint=f"sudo {click.get_current_context().command_path} ...")


def main(arguments: list[str]) -> int:
    """Run one command line and return its exit code; whatever goes wrong is said on stderr."""
    try:
        code = cli.main(arguments, prog_name="vllm-safe", standalone_mode=False)
    except (Failure, click.UsageError, click.Abort, OSError) as error:
        return _report(error)
    except Exception as error:  # noqa: BLE001 -- a mistake of ours is said in one line too, with its place
        place = error.__traceback__
        while place and place.tb_next:
            place = place.tb_next
        where = f"{Path(place.tb_frame.f_code.co_filename).name}:{place.tb_lineno}" if place else "?"
        return _report(
            Failure(f"a mistake in vllm-safe itself: {type(error).__name__}: {error} ({where})", hint="Please report this line.")
        )
    return code if isinstance(code, int) else 0


def _report(error: Exception) -> int:
    """Say what went wrong, and return the exit code for it."""
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
    # Mistakes begin with FILE:LINE:COLUMN, as editors and grep -n know it; a help is no complaint.
    before = "" if isinstance(error, (ConfigError, NoArgsIsHelpError)) else "vllm-safe: "
    for line in message.splitlines():
        click.echo(f"{before}{line}", err=True)
    for line in hint.splitlines():
        click.echo(f"  {line}", err=True)
    return code
