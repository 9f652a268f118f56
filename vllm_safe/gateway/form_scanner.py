"""Fields of a form (multipart/form-data), found while its text comes in pieces."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping

from aiohttp import BodyPartReader, MultipartReader, StreamReader
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http_exceptions import HttpProcessingError

from vllm_safe.gateway.body_scanner import LONGEST_VALUE

_BUFFER = 1 << 16


class _Always(BaseProtocol):
    """A connection that never closes, for the copy of a body, which has none."""

    @property
    def connected(self) -> bool:
        """Whether more can come."""
        return True

    def pause_reading(self, *_: object, **__: object) -> None:
        """Do nothing: the reader takes each piece before the next one comes."""

    def resume_reading(self, *_: object, **__: object) -> None:
        """Do nothing."""


class FormScanner:
    """The texts of the `wanted` fields, with the same members as BodyScanner. aiohttp's reader finds them in a copy of the body."""

    def __init__(self, headers: Mapping[str, str], wanted: Collection[str]) -> None:
        self._wanted = frozenset(wanted)
        self.found: dict[str, object] = {}
        self.ended = False
        self.bad = ""
        loop = asyncio.get_running_loop()
        self._copy = StreamReader(_Always(loop), _BUFFER, loop=loop)
        self._task = loop.create_task(self._read(headers))

    @property
    def complete(self) -> bool:
        """Whether the rest of the text does not matter."""
        return self.ended or bool(self.bad) or len(self.found) == len(self._wanted)

    async def feed(self, piece: bytes) -> None:
        """Read the next piece of the text, or b"" at its end."""
        if piece:
            self._copy.feed_data(piece)
            await asyncio.sleep(0)  # the reader takes all bytes that are there
        else:
            self._copy.feed_eof()
            await asyncio.wait({self._task}, timeout=1)

    def close(self) -> None:
        """Stop reading."""
        self._task.cancel()

    async def _read(self, headers: Mapping[str, str]) -> None:
        try:
            async for part in MultipartReader(headers, self._copy):
                if isinstance(part, BodyPartReader) and part.name in self._wanted and part.name not in self.found:
                    if (text := await _short_text(part)) is not None:
                        self.found[part.name] = text
                    if self.complete:
                        return
        except (ValueError, RuntimeError, AssertionError, EOFError, HttpProcessingError) as error:
            self.bad = f"is not a valid form: {error}"
        else:
            self.ended = True
        finally:
            self._copy.feed_eof()


async def _short_text(part: BodyPartReader) -> str | None:
    """Return the text of a field. Return None if it is too long or not UTF-8."""
    text = b""
    while not part.at_eof() and len(text) <= LONGEST_VALUE:
        text += await part.read_chunk(LONGEST_VALUE)
    try:
        return text.decode() if len(text) <= LONGEST_VALUE else None
    except UnicodeDecodeError:
        return None
