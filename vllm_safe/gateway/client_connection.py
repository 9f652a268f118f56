"""A client's connection: that of aiohttp, with limits, since anybody may connect."""

from __future__ import annotations

import asyncio
from http import HTTPStatus

from aiohttp import StreamReader, web

from vllm_safe.gateway.openai_errors import Refused, error_answer

KEEP_ALIVE = 75.0  # seconds that a connection may idle between two requests
FIRST_REQUEST = 20.0  # seconds within which the head of the first request must arrive
_MOST_AHEAD = 16  # requests that a client may send before the first one is answered
_LONGEST_LINE = 8190  # bytes of a request's first line, and of each header
_LONGEST_HEAD = 1 << 16  # bytes of all of them


class OpenConnections:
    """The open connections. Above `most`, requests are refused; above 5/4 of it, new connections are closed at once."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.all: set[ClientConnection] = set()

    @property
    def full(self) -> bool:
        """Whether there are too many."""
        return len(self.all) > self.most


class ClientConnection(web.RequestHandler):
    """One connection. When the client closes it, the tasks that answer it are cancelled."""

    __slots__ = ("_answered", "_answering", "_body", "_head", "_late", "_open")

    def __init__(self, server: web.Server, connections: OpenConnections) -> None:
        super().__init__(
            server,
            loop=asyncio.get_running_loop(),
            access_log=None,  # type: ignore[arg-type] # the annotation says Logger; None turns the log off
            auto_decompress=False,
            keepalive_timeout=KEEP_ALIVE,
            max_line_size=_LONGEST_LINE,
            max_field_size=_LONGEST_LINE,
        )
        self._open = connections
        self._answering: asyncio.Task[object] | None = None
        self._late: asyncio.TimerHandle | None = None
        self._body: StreamReader | None = None  # of the request that is being answered
        self._answered = 0  # requests
        self._head = 0  # bytes received that belong to no request yet

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Count the connection, and wait for its first request."""
        super().connection_made(transport)
        self._open.all.add(self)
        if len(self._open.all) > self._open.most * 5 // 4:
            self.force_close()
        else:
            self._late = asyncio.get_running_loop().call_later(FIRST_REQUEST, self._close_late)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Cancel the answer to a client that is gone."""
        self._open.all.discard(self)
        self._in_time()
        super().connection_lost(exc)
        if self._answering is not None:
            self._answering.cancel()

    def data_received(self, data: bytes) -> None:
        """Close the connection of a client whose headers do not end, or that sends many requests without waiting for an answer."""
        begun = self._request_count > self._answered  # a request whose head has arrived is not answered yet
        if not begun or (self._body is not None and self._body.is_eof()):
            self._head += len(data)
        super().data_received(data)
        if len(self._messages) > _MOST_AHEAD or self._head > _LONGEST_HEAD + len(data):
            self.force_close()

    def begin_answer(self, body: StreamReader) -> None:
        """Record the current task as the one that answers the request."""
        self._in_time()
        self._body, self._head = body, 0
        self._answering = asyncio.current_task()

    def end_answer(self) -> None:
        """Record that the request is answered."""
        self._answering = self._body = None
        self._answered += 1

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """Answer an invalid request, or one that failed because of a bug in the gateway, and close the connection."""
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            self.log_exception("Error handling a request", exc_info=exc)
            message = "the gateway has a bug: see journalctl -u vllm-gateway"
        if request.writer.output_size > 0:
            raise ConnectionError("the answer has begun")
        answer = error_answer(Refused(HTTPStatus(status), message or "this is not a valid HTTP request"))
        answer.force_close()
        return answer

    def _in_time(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _close_late(self) -> None:
        self._late = None
        self.force_close()
