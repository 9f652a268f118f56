"""An error in the server's own words, in one line, without the advice that it gives."""

from __future__ import annotations

import re

_SHOWN = 300  # characters

# From here on servers give advice: of pip, of a home folder, of options as they spell them. What to change here is said by `why`.
_ADVICE = re.compile(
    r"(?:^|(?<=[.!;:]) ?|(?<=[,.]) )"
    r"(?:(?i:please|try|consider|use|set|run|re-?run|increase|decrease|reduce|reducing|lower|upgrade|update|install|see|check|checkout|"
    r"ensure|make sure|alternatively|add|enable|disable|remove|(?:you|we) (?:can|should|may|must|need|might|recommend|could)|did you|"
    r"to (?:fix|avoid|disable|enable|resolve|allow|use|get|debug))\b|"
    r"(?:If (?:this|you|it|exit)|More information|"
    r"For (?:more|further|debugging|example|help)|In this case|This (?:could|may|might|happens))\b)|"
    r"\bpip3? install|~/|\(run with |`?--?\w[\w-]*`? (?:flag|option)|\. However\b| - this (?:may|might|could|is)\b|\[type=\w+, input|"
    r", try \w+ing\b| - please\b|\(Request ID: "
)
_CLASS = re.compile(r"(?:[\w.]+\.)?(?P<name>\w+): (?=\S)")
_INNER = re.compile(r"\bValue error, ")  # of pydantic
_OPTION = re.compile(r"(?<![\w-])--([a-z][\w-]*)")


def quote_error(text: str, *, command: bool) -> str:
    """The beginning of an error in the server's words, in one line, cut before its advice; an option as config.yaml spells it."""
    if inner := _INNER.search(text):
        text = text[inner.end() :]
    line = " ".join(text.split())[: 4 * _SHOWN]
    first = _CLASS.match(line)
    begin = first.end() if first else 0
    if cut := next((match for match in _ADVICE.finditer(line, begin) if match.start() > begin), None):
        line = line[: cut.start()]
    if not command:
        line = _OPTION.sub(r"args.\1", line)
    if len(line) > _SHOWN:
        line = f"{line[:_SHOWN].rpartition(' ')[0] or line[:_SHOWN]} ..."
    return line.rstrip(" :,;(`")


def without_full_stop(text: str) -> str:
    """Without a point at its end, to be gone on with; but "..." stays."""
    return text if text.endswith("...") else text.rstrip(".")


def with_full_stop(text: str) -> str:
    """With one point at its end, and with three where it is cut; with none after "!" and "?"."""
    return text if text.endswith(("...", "!", "?")) else f"{text.rstrip('.')}."
