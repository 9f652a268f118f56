"""The command line in general: help, errors, exit codes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module

import click
import pytest

from vllm_safe import __version__
from vllm_safe.cli import entry, main
from vllm_safe.common.errors import ConfigError, Failure, Mistake, Misuse


def run_program(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "vllm_safe", *arguments], env=os.environ | environment, capture_output=True, text=True, check=False
    )


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Run the command line with one command whose body is the given function."""

    def run(body: Callable[[], object], *arguments: str) -> int:
        monkeypatch.setitem(entry.COMMANDS, "body", "A body")
        monkeypatch.setattr(main.LazyGroup, "get_command", lambda *_: click.Command("body", callback=body))
        return main.main(["body", *arguments])

    return run


def raising(error: BaseException) -> Callable[[], object]:
    def body() -> object:
        raise error

    return body


@pytest.mark.parametrize("name", entry.COMMANDS)
def test_each_command_exists_and_has_help(name: str) -> None:
    command = import_module(f"vllm_safe.cli.{name}").command
    assert isinstance(command, click.Command)
    assert command.get_short_help_str()


def test_a_configuration_that_may_not_be_read_is_a_mistake_in_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("os.access", lambda *_, **__: False)  # the check that click would make
    assert main.main(["check", "--config", "/dev/null"]) == 2
    assert capsys.readouterr().err.startswith("/dev/null: is a device")


def test_help_lists_each_command_within_80_columns() -> None:
    shown = run_program("--help")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert all(f"\n  {name} " in shown.stdout for name in entry.COMMANDS)
    assert max(map(len, shown.stdout.splitlines())) <= 80
    assert run_program("-h").stdout == shown.stdout


def test_help_imports_no_command_and_no_library() -> None:
    code = "import sys; from vllm_safe.cli.entry import main; sys.argv[1:] = ['--help']; main(); print(*sys.modules, file=sys.stderr)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stderr.split()
    assert not {"click", "yaml", "psutil", "typing", "pathlib"} & set(loaded)
    assert not {f"vllm_safe.cli.{name}" for name in entry.COMMANDS} & set(loaded)


def test_version() -> None:
    assert run_program("--version").stdout == f"vllm-safe {__version__}\n"


def test_no_command_is_misuse_and_shows_the_help() -> None:
    shown = run_program()
    assert (shown.returncode, shown.stdout) == (2, "")
    assert shown.stderr == entry.HELP + "\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["chekc"], "No such command 'chekc'. Did you mean 'check'?\n"),
        (["Status", "x"], "No such command 'Status'. Did you mean 'status'?\n"),
        (["swap", "creat"], "No such command 'creat'. Did you mean 'create'?\n"),
        (["frobnicate"], "No such command 'frobnicate'\n"),
        (["--hlep"], "No such option '--hlep'"),
        (["show"], "Missing argument"),
        (["show", "a", "b", "c"], "Got unexpected extra argument"),
    ],
)
def test_misuse_says_what_is_wrong_and_where_the_help_is(arguments: list[str], message: str) -> None:
    shown = run_program(*arguments)
    assert (shown.returncode, shown.stdout) == (2, "")
    assert shown.stderr.startswith(f"vllm-safe: {message}")
    assert "--help" in shown.stderr.splitlines()[-1]


def test_a_failure_is_said_with_its_hint(command: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert command(raising(Failure("it broke", hint="mend it\nor buy a new one"))) == 1
    assert capsys.readouterr() == ("", "vllm-safe: it broke\n  mend it\n  or buy a new one\n")


def test_misuse_has_its_own_exit_code(command: Callable[..., int]) -> None:
    assert command(raising(Misuse("wrong"))) == 2


def test_each_mistake_has_a_line_of_its_own(command: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    mistakes = [Mistake("c.yaml", 2, 1, "second"), Mistake("c.yaml", 1, 5, "first")]
    assert command(raising(ConfigError(mistakes))) == 2
    assert capsys.readouterr().err == "c.yaml:1:5: first\nc.yaml:2:1: second\n"


def test_an_internal_error_is_one_line_with_its_position(command: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert command(raising(KeyError("gone"))) == 1
    err = capsys.readouterr().err
    assert err.startswith("vllm-safe: internal error: KeyError: 'gone' (test_main.py:")
    assert "Traceback" not in err


def test_an_error_of_the_system_names_the_file(command: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert command(raising(FileNotFoundError(2, "No such file or directory", "/nowhere"))) == 1
    assert capsys.readouterr().err == "vllm-safe: /nowhere: No such file or directory\n"


def test_an_error_without_a_file_still_says_something(command: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert command(raising(OSError("the disk is on fire"))) == 1
    assert capsys.readouterr().err == "vllm-safe: the disk is on fire\n"


def test_interrupted(command: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert command(raising(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err.endswith("vllm-safe: interrupted\n")


def test_interrupted_while_it_loads(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    class Impatient:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "vllm_safe.cli.main":
                raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["vllm-safe", "check"])
    monkeypatch.setattr(sys, "meta_path", [Impatient(), *sys.meta_path])
    monkeypatch.delitem(sys.modules, "vllm_safe.cli.main")
    with pytest.raises(SystemExit, match="130"):
        entry.main()
    assert capsys.readouterr().err == "\nvllm-safe: interrupted\n"


@pytest.mark.parametrize(("result", "code"), [(None, 0), (0, 0), (3, 3), ("text", 0)])
def test_what_a_command_returns_is_the_exit_code(command: Callable[..., int], result: object, code: int) -> None:
    assert command(lambda: result) == code


def test_a_command_may_exit(command: Callable[..., int]) -> None:
    assert command(lambda: click.get_current_context().exit(1)) == 1


def test_a_reader_that_had_enough_is_no_error() -> None:
    with subprocess.Popen([sys.executable, "-m", "vllm_safe", "show", "--help"], stdout=-1, stderr=-1, text=True) as program:
        assert program.stdout is not None
        assert program.stderr is not None
        program.stdout.close()
        assert program.stderr.read() == ""


def test_need_root(command: Callable[..., int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert command(main.need_root) == 2
    assert capsys.readouterr().err == "vllm-safe: this command must be run as root\n  sudo vllm-safe body ...\n"


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["check", "--help"], ["show", "x"]])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_who_reads_no_further_sees_no_traceback(words: list[str], unbuffered: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    code = "from vllm_safe.cli.entry import main; main()"
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run(
        [sys.executable, "-c", code, *words], stdout=writing, stderr=subprocess.PIPE, text=True, env=environment, check=False
    )
    os.close(writing)
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr


@pytest.mark.parametrize(("words", "offered"), [("vllm-safe ", set(entry.COMMANDS)), ("vllm-safe sh", {"show"})])
def test_tab_offers_the_commands(words: str, offered: set[str]) -> None:
    shown = run_program(_VLLM_SAFE_COMPLETE="bash_complete", COMP_WORDS=words, COMP_CWORD="1")
    assert {line.removeprefix("plain,") for line in shown.stdout.splitlines()} == offered
