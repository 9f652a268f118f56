"""The two ways in which a command can fail. Every error message that a user reads passes through this module."""

from __future__ import annotations

from typing import NamedTuple

from vllm_safe.common.printable_text import printable

EXIT_FAILED = 1
EXIT_MISUSE = 2  # wrong usage or configuration: systemd does not restart on it (RestartPreventExitStatus=2)
EXIT_IDLE = 3  # a model on demand was idle: systemd does not restart it either, and it has not failed (SuccessExitStatus=3)


class Failure(Exception):
    """An operation that could not be done.

    message: what is wrong, in one line. hint: what to do next, or "".
    """

    exit_code = EXIT_FAILED

    def __init__(self, message: str, *, hint: str = "") -> None:
        self.message = printable(message)
        self.hint = printable(hint)
        super().__init__(self.message)


class Misuse(Failure):
    """A request that can never work as written: wrong usage or a wrong configuration."""

    exit_code = EXIT_MISUSE


class Mistake(NamedTuple):
    """One mistake in a configuration file. `line` and `column` count from 1; both are 0 where the position is not known."""

    file: str
    line: int
    column: int
    text: str

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        return f"{where}: {self.text}"


_MOST_SHOWN = 40  # mistakes: one screen; a file with more mistakes than that is probably not a configuration


class ConfigError(Misuse):
    """Every mistake found in a configuration file, in the file's order."""

    def __init__(self, mistakes: list[Mistake]) -> None:
        self.mistakes = tuple(sorted(set(mistakes)))  # each once, although a YAML alias can repeat one in several places
        lines = [str(mistake) for mistake in self.mistakes[:_MOST_SHOWN]]
        if more := len(self.mistakes) - len(lines):
            lines.append(f"... and {more} more")
        super().__init__("\n".join(lines))
