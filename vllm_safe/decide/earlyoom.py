"""The arguments of earlyoom, and the environment file that carries them through two of systemd's parsers."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from vllm_safe.errors import Misuse

if TYPE_CHECKING:
    from vllm_safe.config.settings import Config

VARIABLE = "EARLYOOM_ARGS"
_HEADER = "# Written by vllm-safe from the section earlyoom of its config.yaml; changes here are lost.\n"


def decide_arguments(config: Config) -> tuple[str, ...]:
    """What earlyoom is started with. Only options that 1.7, 1.8 and 1.9 all have: an unknown one ends it (exit 13).

    Misuse where earlyoom would refuse its arguments and never run.
    """
    earlyoom = config.earlyoom
    _refuse_what_ends_earlyoom(config)
    thresholds = ("-m", f"{earlyoom.memory:g}", "-s", f"{earlyoom.swap:g}")  # SIGKILL at half of each
    # One report an hour is Debian's own choice; without -r there is one each minute.
    return (*thresholds, "-r", "3600", "--prefer", earlyoom.prefer, "--avoid", earlyoom.avoid)


def decide_environment_file(config: Config) -> str | None:
    """The text of earlyoom.env, or None where earlyoom is left to the admin."""
    if not config.earlyoom.enabled:
        return None
    return f"{_HEADER}{VARIABLE}={_quote_value(join_arguments(decide_arguments(config)))}\n"


def join_arguments(arguments: tuple[str, ...]) -> str:
    r"""One string that systemd splits into exactly these words where a unit says ExecStart=... $NAME.

    It splits at whitespace, respects and removes quotes, and eats one backslash before any character, in quotes too
    (systemd.service(5), "Command lines"; earlyoom issue 57).
    """
    return " ".join(_quote_word(word) for word in arguments)


def split_arguments(text: str) -> tuple[str, ...]:
    """The words that systemd makes of the value of a variable: the other direction of `join_arguments`."""
    words: list[str] = []
    for piece in re.finditer(r"""(?:\\.|'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|[^\s'"\\])+""", text, re.DOTALL):
        parts = re.findall(r"""\\.|'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|[^\s'"\\]+""", piece[0], re.DOTALL)
        words.append("".join(re.sub(r"\\(.)", r"\1", part[1:-1] if part[0] in "'\"" else part, flags=re.DOTALL) for part in parts))
    return tuple(words)


def _quote_word(word: str) -> str:
    if re.fullmatch(r"[\w.,:/=+-]+", word):
        return word
    return "'" + word.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _quote_value(value: str) -> str:
    r"""A double-quoted value of an environment file: there, a backslash before one of " \ ` $ stands for that character."""
    return '"' + re.sub(r'(["\\`$])', r"\\\1", value) + '"'


def _refuse_what_ends_earlyoom(config: Config) -> None:
    earlyoom = config.earlyoom
    for key, percent, most in (("memory", earlyoom.memory, 99), ("swap", earlyoom.swap, 100)):
        if not 0 < percent <= most:
            message = f"earlyoom.{key}: {percent:g} % is nothing that earlyoom takes: it would end at once"
            raise Misuse(message, hint=f"Write more than 0 and at most {most}, or `enabled: no` in the section earlyoom.")
