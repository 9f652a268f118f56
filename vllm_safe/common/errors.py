"""The two ways a command can end badly; everything a person reads about a mistake passes through here."""

from __future__ import annotations

from typing import NamedTuple

from vllm_safe.common.printable_text import printable

EXIT_FAILED = 1
EXIT_MISUSE = 2  # wrong usage or configuration: systemd does not restart on it (RestartPreventExitStatus=2)


class Failure(Exception):
    """Something could not be done.

    message: what is wrong, in one line; hint: what to do next, or "".
    """

    exit_code = EXIT_FAILED

    def __init__(self, message: str, *, hint: str = "") -> None:
        self.message = printable(message)
        self.hint = printable(hint)
        super().__init__(self.message)


class Misuse(Failure):
    """What was asked for can never work as written: wrong usage, wrong configuration."""

    exit_code = EXIT_MISUSE


class Mistake(NamedTuple):
    """One mistake in a configuration file. line and column count from 1; 0 where the file has none to offer."""

    file: str
    line: int
    column: int
    text: str

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        return f"{where}: {self.text}"


_MOST_SHOWN = 40  # of mistakes: a screen; more than that is another kind of file


class ConfigError(Misuse):
    """Every mistake found in a configuration file, in the file's order."""

    def __init__(self, mistakes: list[Mistake]) -> None:
        self.mistakes = tuple(sorted(set(mistakes)))  # once, where an alias brings one to several places
        lines = [str(mistake) for mistake in self.mistakes[:_MOST_SHOWN]]
        if more := len(self.mistakes) - len(lines):
            lines.append(f"... and {more} more")
        super().__init__("\n".join(lines))
