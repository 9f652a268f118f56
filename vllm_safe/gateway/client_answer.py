"""The answer to one client: comments while the model loads, then the answer of its server, and an error if that breaks off."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from http import HTTPStatus

from aiohttp import ClientError, ClientResponse, web

from vllm_safe.gateway.client_connection import ClientConnection
from vllm_safe.gateway.model_server import CONNECTION_ONLY, passed_on
from vllm_safe.gateway.openai_errors import ANY_ORIGIN, Refused, error_answer, error_event

_EVENTS = "text/event-stream"
_STUCK = 300.0  # seconds; a client that reads nothing for so long is disconnected
_LONGEST_ERROR = 1 << 16  # bytes of an error that are passed on as an event


class ClientAnswer:
    """The answer to `request`. model: the name of the model, once known. task: the task that writes the answer."""

    def __init__(self, request: web.BaseRequest, connection: ClientConnection) -> None:
        self.request, self._connection = request, connection
        self.model = ""
        self.task = asyncio.current_task()
        self.cut: Refused | None = None  # the reason why the gateway itself ends the answer
        self._response: web.StreamResponse | None = None
        self._events = False

    async def comment(self, text: str) -> None:
        """Send the state of the model as a comment in the event stream, which clients skip."""
        if self._response is None:
            self._events = True
            headers = {**ANY_ORIGIN, "Content-Type": f"{_EVENTS}; charset=utf-8", "Cache-Control": "no-cache"}
            self._response = web.StreamResponse(headers=headers)
            await self._response.prepare(self.request)
        await self._send(self._response, f": {' '.join(text.split())}\n\n".encode(errors="replace"))

    async def pass_on(self, answer: ClientResponse) -> web.StreamResponse:
        """Pass on the answer of the model. Raises Refused if it breaks off, and ConnectionError if the client is gone."""
        events = answer.content_type == _EVENTS
        response = self._response
        if response is not None and not (events and answer.status == HTTPStatus.OK):
            await self._send(response, b"data: " + await _one_line(answer) + b"\n\n")
        else:
            if response is None:
                headers = passed_on(answer.headers, CONNECTION_ONLY)
                response = self._response = web.StreamResponse(status=answer.status, reason=answer.reason, headers=headers)
                self._events = events
                await response.prepare(self.request)
            while piece := await self._next(answer):
                await self._send(response, piece)
        await response.write_eof()
        return response

    async def refuse(self, refused: Refused) -> web.StreamResponse:
        """End the answer with an error: as a response, as an event of a stream, or by closing the connection."""
        if self._response is None:
            return error_answer(refused)
        if self._events:
            await self._send(self._response, error_event(refused))
            await self._response.write_eof()
        else:
            self._connection.force_close()
        return self._response

    def abandon(self) -> web.StreamResponse:
        """Close the connection to a client that is gone."""
        self._connection.force_close()
        return self._response or web.Response()

    async def _next(self, answer: ClientResponse) -> bytes:
        try:
            return await answer.content.readany()
        except (ClientError, OSError) as error:
            message = f"the server of {self.model} ended in the middle of its answer. See: vllm-safe why {self.model}"
            raise Refused(HTTPStatus.BAD_GATEWAY, message, retry_after=5) from error

    @staticmethod
    async def _send(response: web.StreamResponse, piece: bytes) -> None:
        """Send a piece to the client. Raises ConnectionError if it is gone, or has not read for minutes."""
        try:
            async with asyncio.timeout(_STUCK):
                await response.write(piece)
        except TimeoutError as error:
            raise ConnectionResetError("the client does not read") from error


async def _one_line(answer: ClientResponse) -> bytes:
    """Return the error of a server as one line, for a client that has already been promised a stream of events."""
    text = b""
    with suppress(ClientError, OSError):
        while len(text) < _LONGEST_ERROR and (piece := await answer.content.readany()):
            text += piece
    return b" ".join(text.split())
