"""The text of a bundle: what is in it and what was left out, and then its parts. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vllm_safe.bundle.identity import ADDRESS, HOST, ID, USER, Identity
from vllm_safe.common.printable_text import printable
from vllm_safe.report.redact import REMOVED

MOST = 60_000  # characters of a bundle: an issue on GitHub takes 65 536
_MOST_EACH = 12_000  # of a part; the journal gets what the others leave
_LONGEST_LINE = 600
_PLACEHOLDERS = {
    REMOVED: "keys, tokens, passwords, prompts, values of variables in `env` that nothing is known of",
    HOST: "names of this machine, and of others in URLs",
    USER: "names of people and of their home folders",
    ADDRESS: "IP, MAC and mail addresses",
    ID: "UUIDs, serial numbers, the machine ID",
}


@dataclass(frozen=True)
class BundlePart:
    """One part. absent: why there is nothing, or "". is_log: its end matters more than its beginning, and it gets the room that is left."""

    title: str
    source: str  # where it is from: a command, as a person would type it
    text: str = ""
    absent: str = ""
    is_log: bool = False


@dataclass(frozen=True)
class _Fitted:
    """A part as it is printed. left_out: the number of lines that there was no room for."""

    part: BundlePart
    lines: tuple[str, ...]
    left_out: int


def bundle_text(heading: str, parts: Sequence[BundlePart], identity: Identity) -> str:
    """Return the bundle, in at most MOST characters. heading: one line that says what it is of."""
    texts = [_cleaned(part, identity) for part in parts]
    fitted: list[_Fitted] = []
    room = MOST - 4_000  # for what comes before the parts, and their headings
    for part, lines in zip(parts, texts, strict=True):
        if not part.is_log:
            fitted.append(_fit(part, lines, min(_MOST_EACH, room)))
            room -= _size(fitted[-1].lines)
    logs = [(part, lines) for part, lines in zip(parts, texts, strict=True) if part.is_log]
    for number, (part, lines) in enumerate(sorted(logs, key=lambda log: _size(log[1]))):  # a short one leaves its room to the next
        fitted.append(_fit(part, lines, room // (len(logs) - number)))
        room -= _size(fitted[-1].lines)
    ordered = [next(each for each in fitted if each.part is part) for part in parts]
    body = [line for each in ordered if each.lines for line in ("", f"==== {each.part.title} ({each.part.source})", *each.lines)]
    return "\n".join([*_contents(identity.clean(heading), ordered, "\n".join(body)), *body, ""])


def _cleaned(part: BundlePart, identity: Identity) -> list[str]:
    lines = printable(identity.clean(part.text.rstrip())).split("\n")
    return [line.rstrip() if len(line) <= _LONGEST_LINE else f"{line[:_LONGEST_LINE]} ..." for line in lines] if part.text.strip() else []


def _fit(part: BundlePart, lines: Sequence[str], most: int) -> _Fitted:
    """Leave out lines until the rest fits: the first ones of a log, else the last ones."""
    kept: list[str] = []
    for line in reversed(lines) if part.is_log else lines:
        most -= len(line) + 1
        if most < 0:
            break
        kept.append(line)
    return _Fitted(part, tuple(reversed(kept) if part.is_log else kept), len(lines) - len(kept))


def _size(lines: Sequence[str]) -> int:
    return sum(len(line) + 1 for line in lines)


def _contents(heading: str, fitted: Sequence[_Fitted], body: str) -> Iterator[str]:
    yield heading
    yield "Made to be pasted into an issue. Read it first: no program knows all that you would rather not tell."
    yield "\nWhat is in it                                     lines  characters"
    for each in fitted:
        count = f"{len(each.lines):5}  {_size(each.lines):10}" if each.lines else f"  none: {each.part.absent or 'it printed nothing'}"
        yield f"  {each.part.title:<46}{count}"
    yield "\nWhat was left out"
    for placeholder, meaning in _PLACEHOLDERS.items():
        times = body.count(placeholder)
        yield f"  {placeholder:<10}{'never' if not times else 'once' if times == 1 else f'{times} times':<10} {meaning}"
    for each in fitted:
        if each.left_out:
            yield f"  {each.left_out} {'older' if each.part.is_log else 'last'} lines of: {each.part.title}"
    yield "Names of models, paths outside of home folders and settings were kept."
