"""Quote an error of a server in one line, without the advice in it."""

from __future__ import annotations

import re

_SHOWN = 300  # characters

# The beginning of advice in a server's error: about pip, a home folder, or options in the server's own spelling. `why` names the settings
# to change here.
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
_INNER = re.compile(r"\bValue error, ")  # pydantic's prefix
_OPTION = re.compile(r"(?<![\w-])--([a-z][\w-]*)")


def quote_error(text: str, *, command: bool) -> str:
    """Quote the beginning of an error in one line, cut before its advice.

    command: the server is not vLLM. Otherwise options are spelled as in config.yaml.
    """
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
    """Return the text without a full stop at its end, so that a sentence can continue; "..." stays."""
    return text if text.endswith("...") else text.rstrip(".")


def with_full_stop(text: str) -> str:
    """Return the text with one full stop at its end; none is added after "...", "!" and "?"."""
    return text if text.endswith(("...", "!", "?")) else f"{text.rstrip('.')}."
