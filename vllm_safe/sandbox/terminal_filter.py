"""What an untrusted program draws on root's terminal: words, colours and a moving line, and nothing that makes a terminal do more.

A terminal that is asked for its title or its state answers as if somebody had typed it, and can be told to fill the clipboard.
"""

from __future__ import annotations

import codecs
import re

# Not common/terminal.py's pattern, of all that is taken off before a line is read: this is the little that a terminal may see.
# Let through: colours, moving, erasing, and (h, l) showing the cursor and drawing at once. Everything else loses its first character.
_ALLOWED = r"\x1b\[(?:[0-9;]{0,32}[A-HJKSTm]|\?(?:25|2026)[hl])"
_SEQUENCE = re.compile(rf"({_ALLOWED})|[^\n\r\t\b\x20-\x7e\xa0-\U0010ffff]")
_UNFINISHED = re.compile(r"\x1b(?:\[[0-9;?]{0,32})?\Z")


class TerminalFilter:
    """A filter of bytes as they come; what may be the beginning of a sequence waits for the rest."""

    def __init__(self) -> None:
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._waiting = ""

    def __call__(self, data: bytes) -> bytes:
        """What of it is shown. b"" is the end of it."""
        text = self._waiting + self._decode(data, final=not data)
        unfinished = _UNFINISHED.search(text) if data else None
        self._waiting = unfinished[0] if unfinished else ""
        whole = text.removesuffix(self._waiting)
        return _SEQUENCE.sub(lambda match: match[1] or "", whole).encode()
