"""The arguments of earlyoom, the environment file that carries them through two of systemd's parsers, and the drop-in that reads it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from vllm_safe.common import paths
from vllm_safe.config.settings import Config

VARIABLE = "EARLYOOM_ARGS"
_HEADER = "# Written by vllm-safe from the section earlyoom of its config.yaml; changes here are lost.\n"
_DROPIN = f"""\
# Written by vllm-safe while earlyoom.enabled of its config.yaml is true; changes here are lost at the next boot.

[Unit]
# Debian's unit tries 5 times in 10 s and then leaves the machine without it for good (earlyoom issue 378): try for ever instead.
StartLimitIntervalSec=0

[Service]
# Read after /etc/default/earlyoom, and the later file wins. Environment= would lose to both.
EnvironmentFile=-{paths.EARLYOOM_ENV}
RestartSec=1s

# It must get the CPU while everything else thrashes, and not be a victim itself: Debian 13 has these values, Debian 12 does not.
Nice=-20
OOMScoreAdjust=-100
"""


@dataclass(frozen=True)
class EarlyoomFiles:
    """The texts of paths.EARLYOOM_ENV and paths.EARLYOOM_DROPIN; None: there is no such file."""

    arguments: str | None = None
    dropin: str | None = None


def decide_earlyoom_arguments(config: Config) -> tuple[str, ...]:
    """Decide the arguments of earlyoom: only options that 1.7, 1.8 and 1.9 all have, since it exits (13) on an unknown one."""
    earlyoom = config.earlyoom
    memory = min(earlyoom.memory, 99)  # the maximum that -m accepts
    thresholds = ("-m", f"{memory:g}", "-s", f"{earlyoom.swap:g}")  # SIGTERM below both, SIGKILL below half of both
    # One report an hour is Debian's default; without -r there is one every second.
    return (*thresholds, "-r", "3600", "--prefer", earlyoom.prefer, "--avoid", earlyoom.avoid)


def decide_earlyoom(config: Config) -> EarlyoomFiles:
    """Return the files that earlyoom is to have; none where `enabled` is false, and it then runs as Debian ships it."""
    if not config.earlyoom.enabled:
        return EarlyoomFiles()
    return EarlyoomFiles(f"{_HEADER}{VARIABLE}={_quote_value(join_arguments(decide_earlyoom_arguments(config)))}\n", _DROPIN)


def keep_earlyoom(there: EarlyoomFiles) -> EarlyoomFiles:
    """Return the files that earlyoom is to have while the configuration has a mistake: its present ones, and after a boot the drop-in."""
    return EarlyoomFiles(there.arguments, None if there.arguments is None else _DROPIN)


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
