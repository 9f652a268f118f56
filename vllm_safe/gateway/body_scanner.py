"""Values of a JSON object, found while its text comes in pieces. Pure.

Only the requested strings and literals of the outermost object are kept, so a text of any size needs no memory. A parser that returns whole
strings (yajl, through python3-ijson) would keep an image of 60 MiB before it reaches the name of the model behind it. The server itself
checks whether the text is valid JSON.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection

LONGEST_VALUE = 4096  # bytes of a value that is kept
_LONGEST_KEY = 256  # bytes, escapes included

_IN_STRING = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)
_OUTERMOST = re.compile(rb'["{}\[\],:]')
_DEEPER = re.compile(rb'["{}\[\]]')
_BEFORE = b" \t\r\n\xef\xbb\xbf"


class BodyScanner:
    """The values of the `wanted` keys. found: the values seen so far; of a repeated key, the first. Values that are too long are left out.

    ended: nothing more can be found, since the object ended. bad: why the text is not an object with such values, or "".
    """

    def __init__(self, wanted: Collection[str]) -> None:
        self._wanted = frozenset(wanted)
        self.found: dict[str, object] = {}
        self.ended = False
        self.bad = ""
        self._depth = 0
        self._in_string = self._escaped = False
        self._is_key = True  # the next string of the outermost object is a key
        self._key: str | None = None  # the wanted key whose value is next
        self._kept: bytearray | None = None  # the text of a string or a literal that is being kept
        self._most = 0

    @property
    def complete(self) -> bool:
        """Whether the rest of the text does not matter."""
        return self.ended or bool(self.bad) or len(self.found) == len(self._wanted)

    def feed(self, chunk: bytes) -> None:
        """Read the next piece of the text."""
        position = 0
        if not self._depth and not self.complete:
            start = chunk.lstrip(_BEFORE)
            if not start:
                return
            if not start.startswith(b"{"):
                self.bad = "is not a JSON object"
            position = len(chunk) - len(start) + 1
            self._depth = 1
        while position < len(chunk) and not self.complete:
            position = self._string(chunk, position) if self._in_string else self._outside(chunk, position)

    def _string(self, chunk: bytes, position: int) -> int:
        """Continue inside a string. Return the position after the last byte read."""
        if self._escaped:
            self._escaped = False
            self._keep(chunk[position : position + 1])
            return position + 1
        match = _IN_STRING.match(chunk, position)
        end = match.end() if match else position
        if self._kept is not None:
            self._keep(chunk[position:end])
        if chunk[end : end + 1] == b"\\":  # the last byte
            self._escaped = True
            self._keep(b"\\")
        elif end < len(chunk):
            self._in_string = False
            self._end_string()
        return end + 1

    def _outside(self, chunk: bytes, position: int) -> int:
        """Continue outside strings. Return the position after the last byte read."""
        match = (_OUTERMOST if self._depth == 1 else _DEEPER).search(chunk, position)
        if self._depth == 1 and self._kept is not None:
            self._keep(chunk[position : match.start() if match else len(chunk)])
        if match is None:
            return len(chunk)
        sign = match[0]
        if sign == b'"':
            self._in_string = True
            if self._depth == 1:
                self._begin_string()
        elif sign in b"{[":
            self._depth += 1
            self._key, self._kept = None, None
        elif sign in b"}]":
            self._depth -= 1
            if not self._depth:
                self._end_literal()
                self.ended = True
        elif sign == b":":
            self._is_key = False
            self._begin(LONGEST_VALUE if self._key is not None else 0)
        else:
            self._end_literal()
            self._is_key = True
        return match.end()

    def _begin_string(self) -> None:
        """Keep a key, or the string that is the value of a wanted one."""
        self._begin(_LONGEST_KEY if self._is_key else LONGEST_VALUE if self._key is not None else 0)

    def _end_string(self) -> None:
        if self._depth != 1:
            return
        text = self._text(b'"', b'"')
        if self._is_key:
            self._key = text if isinstance(text, str) and text in self._wanted else None
        elif self._key is not None:
            if text is not None:
                self.found.setdefault(self._key, text)
            self._key = None

    def _end_literal(self) -> None:
        """End a value other than a string: true, false, null or a number."""
        if self._key is not None and (value := self._text()) is not None:
            self.found.setdefault(self._key, value)
        self._key, self._kept = None, None

    def _begin(self, most: int) -> None:
        self._kept, self._most = (bytearray() if most else None), most

    def _keep(self, text: bytes) -> None:
        if self._kept is not None:
            self._kept += text
            if len(self._kept) > self._most:
                self._kept = None

    def _text(self, before: bytes = b"", after: bytes = b"") -> object:
        """Return the value of the kept text. Return None if it was too long or is not valid JSON."""
        kept, self._kept = self._kept, None
        if kept is None:
            return None
        try:
            return json.loads(before + bytes(kept) + after)
        except (ValueError, RecursionError):
            return None
