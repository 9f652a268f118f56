"""Filter for what an untrusted program draws on root's terminal: text, colours and cursor movement, and no other control sequences.

A terminal that is queried for its title or its state answers as if a person had typed the answer, and sequences can set the clipboard.
"""

from __future__ import annotations

import codecs
import re

# This is not the pattern of common/terminal.py, which matches every sequence that is removed before a line is read.
# Allowed: colours, cursor movement, erasing, and (h, l) cursor visibility and synchronized output. Others lose their first character.
_ALLOWED = r"\x1b\[(?:[0-9;]{0,32}[A-HJKSTm]|\?(?:25|2026)[hl])"
_SEQUENCE = re.compile(rf"({_ALLOWED})|[^\n\r\t\b\x20-\x7e\xa0-\U0010ffff]")
_UNFINISHED = re.compile(r"\x1b(?:\[[0-9;?]{0,32})?\Z")


class TerminalFilter:
    """A filter of a stream of bytes. The possible beginning of a sequence is held back until the rest arrives."""

    def __init__(self) -> None:
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._waiting = ""

    def __call__(self, data: bytes) -> bytes:
        """Return the bytes to show. b"" marks the end of the stream."""
        text = self._waiting + self._decode(data, final=not data)
        unfinished = _UNFINISHED.search(text) if data else None
        self._waiting = unfinished[0] if unfinished else ""
        whole = text.removesuffix(self._waiting)
        return _SEQUENCE.sub(lambda match: match[1] or "", whole).encode()
