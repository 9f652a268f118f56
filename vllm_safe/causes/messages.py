"""What an error says, by the table of patterns; and whether a second start can help, by the rule for errors that no pattern knows."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from vllm_safe.causes.card_patterns import CARDS
from vllm_safe.causes.death_patterns import DEATHS
from vllm_safe.causes.general_patterns import GENERAL
from vllm_safe.causes.host_patterns import HOST
from vllm_safe.causes.patterns import SPECIFIC, Pattern

PATTERNS: tuple[Pattern, ...] = (*SPECIFIC, *CARDS, *HOST, *GENERAL, *DEATHS)  # what is specific stands before what is general
FOLLOWS = frozenset({"worker-died", "engine-died"})  # deaths that only follow from another
_OF_FAILING_CARDS = frozenset({"gpu-fault", "gpu-assert", "no-gpu", "nccl-error", "nccl-timeout", "step-timeout"})
# pydantic's field and what is wrong with it, NCCL's "Last error:" and the error: one line each.
_TWO_LINES = re.compile(r"^(?P<first>[\w.\[\]-]+)\n\s*(?=.+ \[type=\w+)|^(?P<last>Last error):\n\s*(?=\S)", re.MULTILINE)
# "torch._inductor.exc.InductorError: OSError: ...": what was wrapped is what is wrong.
_WRAPPER = re.compile(r"\A(?:[\w.]+(?:Error|Exception|Failed)(?:: backend='\w+' raised)?:\s+)+(?=[\w.]*\w(?:Error|Exception)\b)")
_LONGEST = 2000  # characters of a line that are looked at: a server may print a megabyte without an end


class Message(NamedTuple):
    """An error of a server, whole; the line of it that says most; and the figures in that by their names: length, free, wanted, gpus, ...

    code and kind are those of a pattern, "" of none.
    """

    code: str
    kind: str
    never_can_work: bool
    text: str
    line: str
    figures: Mapping[str, str]

    @property
    def is_of_cards(self) -> bool:
        """Whether a card that failed may be what it says, in the words of CUDA, NCCL or the driver's own interface."""
        return self.code in _OF_FAILING_CARDS


def classify_error(text: str) -> Message:
    """What an error says is wrong. Its lines are asked in order, each pattern in turn."""
    text = _WRAPPER.sub("", text)
    lines = [line[:_LONGEST] for line in _TWO_LINES.sub(lambda match: f"{match['first'] or match['last']}: ", text).splitlines()]
    for pattern in PATTERNS:
        regex = re.compile(pattern.regex)
        for line in lines:
            if match := regex.search(line):
                figures = {name: value for name, value in match.groupdict().items() if value is not None}
                return Message(pattern.code, pattern.kind or pattern.code, pattern.never_can_work, text, line, figures)
    return Message("", "", _is_for_good(text), text, " ".join(text.split()), {})


# --- errors that no pattern knows

# Errors of Python that say that something is wrong as it is, by what the class is called, or what its name ends in.
_FOR_GOOD = re.compile(
    r"\w*(?:Value|Type|Key|Attribute|Import|ModuleNotFound|Name|UnboundLocal|Syntax|Indentation|Index|Lookup|Permission|FileNotFound|"
    r"FileExists|IsADirectory|NotADirectory|Assertion|NotImplemented|Unicode\w*|Recursion|ZeroDivision|Overflow|Validation|Config(?:uration)?|"
    r"Parse\w*|Decode|Schema|Template\w*|NotFound|Argument|Option|Format|Compil\w+)(?:Error|Exception)|\w*Unsupported\w*"
)
# Of any other class, those words.
_WORDS_FOR_GOOD = re.compile(
    r"(?:long|larg|small|great)er than|too (?:long|large|small)|out of range|"
    r"not implemented|(?:not|n't) match|must (?:be|match|have)|too many levels|"
    r"should be|\bexpected|invalid|mismatch|not found|does(?: not|n't) exist|missing|"
    r"unknown|unrecogni[sz]ed|incompatible|not divisible|not allowed|requires|can(?:not|'t) find|no such|not compatible",
    re.IGNORECASE,
)
# Of cards too, those.
_UNSUPPORTED = re.compile(r"(?:not|n't) (?:\w+ )?support|unsupported|only supports? ", re.IGNORECASE)
# What other programs, cards, memory or a network may give back.
_GIVEN_BACK = re.compile(
    r"out of memory|not enough (?:\w+ )*memory|timed? ?out|connection (?:refused|reset|aborted|closed|error)|in use|busy|"
    r"temporar|unavailable|try again|unreachable|\bdied\b",
    re.IGNORECASE,
)
_OF_CARDS = re.compile(r"cuda|nccl|gloo|nvml|driver|\brank\b|socket|\bdevice\b", re.IGNORECASE)
_PATH = re.compile(r"(?<!\w)/[^\s'\",:]+")  # a name says nothing of what is wrong
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
    """An error's first line as it is the same at each start: without ids of processes, times, addresses, counts of bytes."""
    return _FIGURE.sub("#", text.partition("\n")[0])
