"""The arguments of earlyoom, and the environment file that passes them unchanged through two parsers of systemd."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vllm_safe.config.settings import Config

VARIABLE = "EARLYOOM_ARGS"
_HEADER = "# Written by vllm-safe from the section earlyoom of its config.yaml; changes here are lost.\n"


def decide_earlyoom_arguments(config: Config) -> tuple[str, ...]:
    """Decide the arguments of earlyoom: only options that 1.7, 1.8 and 1.9 all have, since it exits (13) on an unknown one."""
    earlyoom = config.earlyoom
    memory = min(earlyoom.memory, 99)  # the maximum that -m accepts
    thresholds = ("-m", f"{memory:g}", "-s", f"{earlyoom.swap:g}")  # SIGTERM below both, SIGKILL below half of both
    # One report an hour is Debian's default; without -r there is one every second.
    return (*thresholds, "-r", "3600", "--prefer", earlyoom.prefer, "--avoid", earlyoom.avoid)


def decide_environment_file(config: Config) -> str | None:
    """Return the text of earlyoom.env, or None where earlyoom is left to the administrator."""
    if not config.earlyoom.enabled:
        return None
    return f"{_HEADER}{VARIABLE}={_quote_value(join_arguments(decide_earlyoom_arguments(config)))}\n"


def join_arguments(arguments: tuple[str, ...]) -> str:
    r"""Join arguments to one string that systemd splits into exactly these words for ExecStart=... $NAME in a unit.

    systemd splits at whitespace, respects and removes quotes, and removes one backslash before any character, inside quotes too
    (systemd.service(5), "Command lines"; earlyoom issue 57).
    """
    return " ".join(_quote_word(word) for word in arguments)


def _quote_word(word: str) -> str:
    if re.fullmatch(r"[\w.,:/=+-]+", word):
        return word
    return "'" + word.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _quote_value(value: str) -> str:
    r"""Quote a value for an environment file. Inside double quotes, a backslash before one of " \ ` $ stands for that character."""
    return '"' + re.sub(r'(["\\`$])', r"\\\1", value) + '"'
