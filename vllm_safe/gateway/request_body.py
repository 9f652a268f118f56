"""The body of a request: read until the name of the model is known, and kept so that it can be sent on, and once again."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from http import HTTPStatus

from aiohttp import web

from vllm_safe.common.sizes import format_size
from vllm_safe.gateway.body_scanner import LONGEST_VALUE, BodyScanner
from vllm_safe.gateway.form_scanner import FormScanner
from vllm_safe.gateway.openai_errors import Refused

IN_MEMORY = 1 << 20  # bytes of a body that are kept in memory; more are in a file without a name
MOST_KEPT = 64 << 20  # bytes in which the name of the model has to be
_MOST_TOGETHER = 1 << 30  # bytes that all bodies keep
_PIECE = 1 << 16
_FIELDS = ("model", "stream")
_FOLDER = "/var/tmp"  # noqa: S108 - the unit has one of its own (PrivateTmp=), and /tmp may be in memory


class KeptBytes:
    """The bytes that all bodies keep now."""

    def __init__(self, most: int = _MOST_TOGETHER) -> None:
        self._total, self._most = 0, most

    def add(self, size: int) -> None:
        """Count `size` bytes, which may be negative. Raises Refused if the total would be too large."""
        if self._total + size > self._most:
            raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, "too many large requests wait at once", retry_after=30)
        self._total += size


class RequestBody:
    """The body of one request. The caller must close it."""

    def __init__(self, request: web.BaseRequest, kept: KeptBytes, silence: float) -> None:
        """Wait at most `silence` seconds for each piece."""
        self._content, self._together, self._silence = request.content, kept, silence
        self._kept = tempfile.SpooledTemporaryFile(max_size=IN_MEMORY, dir=_FOLDER)  # noqa: SIM115 - `close` closes it
        self._size = 0
        self._ended = False
        self._scanner = FormScanner(request.headers, _FIELDS) if request.content_type == "multipart/form-data" else BodyScanner(_FIELDS)
        self.repeatable = True  # everything that was sent on is kept
        self.trouble: Refused | None = None  # why it could not be sent on to its end

    def close(self) -> None:
        """Discard the kept bytes."""
        self._together.add(-self._size)
        self._size = 0
        self._kept.close()
        if isinstance(self._scanner, FormScanner):
            self._scanner.close()

    @property
    def streams(self) -> bool:
        """Whether the client asks for a stream of events, as far as the body has been read."""
        return self._scanner.found.get("stream") in (True, "true", "True", "1")

    async def read_model(self) -> str:
        """Read until the name of the model is known, and a small body to its end. Raises Refused."""
        found = self._scanner.found
        while not self._ended and not self._scanner.bad and (self._size < IN_MEMORY or "model" not in found):
            if self._scanner.ended and "model" not in found:
                break
            if self._size >= MOST_KEPT:
                most = format_size(MOST_KEPT)
                message = f"the first {most} of the request do not name the model: put the field `model` before the large ones"
                raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, message)
            await self._keep_more()
        if isinstance(name := found.get("model"), str):
            return name
        if self._scanner.bad:
            raise Refused(HTTPStatus.BAD_REQUEST, f"the body of the request {self._scanner.bad}")
        if self._ended and not self._scanner.ended:
            raise Refused(HTTPStatus.BAD_REQUEST, "the body of the request ends too early")
        raise Refused(HTTPStatus.BAD_REQUEST, f"the request has no field `model` with a name of at most {LONGEST_VALUE} bytes")

    async def read_on(self) -> None:
        """Read on while the model loads, up to the size that is kept: `stream` may be the last key of the body."""
        while not self._ended and self._size < MOST_KEPT:
            await self._keep_more()

    async def pieces(self) -> AsyncIterator[bytes]:
        """Yield the whole body: the kept bytes, then the pieces that still arrive."""
        self._kept.seek(0)
        while piece := self._kept.read(_PIECE):
            yield piece
        try:
            while not self._ended:
                piece = await self._receive()
                if piece:
                    self.repeatable = False
                    yield piece
        except Refused as refused:
            self.trouble = refused
            raise

    async def _keep_more(self) -> None:
        """Receive a piece, keep it, and look for the fields in it."""
        piece = await self._receive()
        self._together.add(len(piece))
        self._size += len(piece)
        self._kept.write(piece)
        if isinstance(self._scanner, FormScanner):
            await self._scanner.feed(piece)
            if self._ended and piece:
                await self._scanner.feed(b"")
        else:
            self._scanner.feed(piece)

    async def _receive(self) -> bytes:
        """Return the next piece that the client sends, b"" at the end of the body."""
        try:
            async with asyncio.timeout(self._silence):
                piece = await self._content.readany()
        except TimeoutError as error:
            raise Refused(HTTPStatus.REQUEST_TIMEOUT, "the body of the request did not come") from error
        except (RuntimeError, web.RequestPayloadError) as error:
            raise ConnectionResetError("the client is gone, or its body is no HTTP") from error
        self._ended = self._content.at_eof()
        return piece
