"""Classification of an error by the table of patterns; for errors that match none, a rule that decides whether a second start can help."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from vllm_safe.causes.card_patterns import CARDS
from vllm_safe.causes.death_patterns import DEATHS
from vllm_safe.causes.general_patterns import GENERAL
from vllm_safe.causes.host_patterns import HOST
from vllm_safe.causes.patterns import SPECIFIC, Pattern

PATTERNS: tuple[Pattern, ...] = (*SPECIFIC, *CARDS, *HOST, *GENERAL, *DEATHS)  # specific patterns before general ones
FOLLOWS = frozenset({"worker-died", "engine-died"})  # deaths that only follow from another one
_OF_FAILING_CARDS = frozenset({"gpu-fault", "gpu-assert", "no-gpu", "nccl-error", "nccl-timeout", "step-timeout"})
# Errors of two lines: pydantic prints the field and its error, NCCL prints "Last error:" and the error.
_TWO_LINES = re.compile(r"^(?P<first>[\w.\[\]-]+)\n\s*(?=.+ \[type=\w+)|^(?P<last>Last error):\n\s*(?=\S)", re.MULTILINE)
# "torch._inductor.exc.InductorError: OSError: ...": the wrapped error is the one that matters.
_WRAPPER = re.compile(r"\A(?:[\w.]+(?:Error|Exception|Failed)(?:: backend='\w+' raised)?:\s+)+(?=[\w.]*\w(?:Error|Exception)\b)")
_LONGEST = 2000  # characters of a line that are searched: a server may print a megabyte without a line end


class Message(NamedTuple):
    """A classified error of a server.

    text: the whole error. line: its most specific line. figures: the figures in that line by name (length, free, wanted, gpus, ...).
    code and kind: those of the pattern that matches, "" if none does.
    """

    code: str
    kind: str
    never_can_work: bool
    text: str
    line: str
    figures: Mapping[str, str]

    @property
    def is_of_cards(self) -> bool:
        """Whether the error, one of CUDA, NCCL or the driver API, may be the consequence of a failed GPU."""
        return self.code in _OF_FAILING_CARDS


def classify_error(text: str) -> Message:
    """Classify an error: return the match of the first pattern that matches one of its lines, tried in order."""
    text = _WRAPPER.sub("", text)
    lines = [line[:_LONGEST] for line in _TWO_LINES.sub(lambda match: f"{match['first'] or match['last']}: ", text).splitlines()]
    for pattern in PATTERNS:
        regex = re.compile(pattern.regex)
        for line in lines:
            if match := regex.search(line):
                figures = {name: value for name, value in match.groupdict().items() if value is not None}
                return Message(pattern.code, pattern.kind or pattern.code, pattern.never_can_work, text, line, figures)
    return Message("", "", _is_for_good(text), text, " ".join(text.split()), {})


# --- errors that match no pattern

# Python exceptions that a second start cannot cure, by the name of the class or its ending.
_FOR_GOOD = re.compile(
    r"\w*(?:Value|Type|Key|Attribute|Import|ModuleNotFound|Name|UnboundLocal|Syntax|Indentation|Index|Lookup|Permission|FileNotFound|"
    r"FileExists|IsADirectory|NotADirectory|Assertion|NotImplemented|Unicode\w*|Recursion|ZeroDivision|Overflow|Validation|Config(?:uration)?|"
    r"Parse\w*|Decode|Schema|Template\w*|NotFound|Argument|Option|Format|Compil\w+)(?:Error|Exception)|\w*Unsupported\w*"
)
# Messages with the same meaning in exceptions of any other class.
_WORDS_FOR_GOOD = re.compile(
    r"(?:long|larg|small|great)er than|too (?:long|large|small)|out of range|"
    r"not implemented|(?:not|n't) match|must (?:be|match|have)|too many levels|"
    r"should be|\bexpected|invalid|mismatch|not found|does(?: not|n't) exist|missing|"
    r"unknown|unrecogni[sz]ed|incompatible|not divisible|not allowed|requires|can(?:not|'t) find|no such|not compatible",
    re.IGNORECASE,
)
# Messages with the same meaning that count for errors of GPUs as well.
_UNSUPPORTED = re.compile(r"(?:not|n't) (?:\w+ )?support|unsupported|only supports? ", re.IGNORECASE)
# Messages about resources that may become available again: other programs, GPUs, memory, a network.
_GIVEN_BACK = re.compile(
    r"out of memory|not enough (?:\w+ )*memory|timed? ?out|connection (?:refused|reset|aborted|closed|error)|in use|busy|"
    r"temporar|unavailable|try again|unreachable|\bdied\b",
    re.IGNORECASE,
)
_OF_CARDS = re.compile(r"cuda|nccl|gloo|nvml|driver|\brank\b|socket|\bdevice\b", re.IGNORECASE)
_PATH = re.compile(r"(?<!\w)/[^\s'\",:]+")  # the name of a file does not tell what is wrong
_CLASS = re.compile(r"(?:[\w.]+\.)?(\w+)(?:: |:?$|:? \()")


def _is_for_good(text: str) -> bool:
    text = _PATH.sub("", text)
    line = text.partition("\n")[0]
    match = _CLASS.match(line)
    if not match or _GIVEN_BACK.search(text):
        return False
    if _FOR_GOOD.fullmatch(match[1]):
        return True
    if _UNSUPPORTED.search(line):
        return True
    return match[1].endswith(("Error", "Exception")) and bool(_WORDS_FOR_GOOD.search(line)) and not _OF_CARDS.search(line)


_FIGURE = re.compile(r"0x[0-9a-fA-F]+|\d+(?:[.,:-]\d+)*(?: ?(?:[KMGT]i?B|bytes)\b)?")


def without_figures(text: str) -> str:
    """Return the first line of an error without the parts that differ at each start: process ids, times, addresses, byte counts."""
    return _FIGURE.sub("#", text.partition("\n")[0])
