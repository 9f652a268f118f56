"""One question to the server, asked over HTTP without ever waiting: the main process has more to do meanwhile.

http.client would do it in two lines and 6 MB (it brings email and ssl), and would block.
"""

from __future__ import annotations

import errno
import os
import re
import socket
from collections.abc import Callable, Mapping
from typing import NamedTuple
from urllib.parse import urlsplit

TIMEOUT = 5.0  # seconds until a server that says nothing counts as one that does not answer
_LONGEST = 4096  # bytes to look for the status line in
_CHUNK = 1 << 16
_MOST = 8 << 20  # bytes of an answer that is read to its end
_STATUS_LINE = re.compile(rb"HTTP/\d\.\d (\d{3})\b[^\n]*\n")


class Answer(NamedTuple):
    """`text` says it to a person, as the end of "the health URL ..."; status: of HTTP, 0 for none; figures: of a long answer."""

    text: str
    healthy: bool = False
    status: int = 0
    figures: Mapping[str, float] = {}


class Probe:
    """One GET, or POST of a JSON text. Wait until `reading` or `writing` is ready or `deadline` has passed, then call `advance`.

    Again until there is an `answer`, which is the status line; with `take`, the rest is read as well and handed on in pieces.
    """

    def __init__(  # noqa: PLR0913 - each is a part of a request
        self, url: str, now: float, *, timeout: float = TIMEOUT, json: str = "", key: str = "", take: Callable[[bytes], None] | None = None
    ) -> None:
        self.deadline = now + timeout
        self._timeout, self._take, self._taken = timeout, take, 0
        self.answer: Answer | None = None
        parts = urlsplit(url)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        version = "1.0" if take else "1.1"  # 1.0 knows no chunked encoding, whose marks would stand within the lines
        lines = [
            f"{'POST' if json else 'GET'} {target} HTTP/{version}",
            f"Host: {parts.netloc}",
            "User-Agent: vllm-safe",
            "Connection: close",
        ]
        lines += ["Content-Type: application/json", f"Content-Length: {len(json.encode())}"] if json else []
        lines += [f"Authorization: Bearer {key}"] if key else []
        self._request = ("\r\n".join(lines) + "\r\n\r\n" + json).encode()
        self._received = b""
        self._socket: socket.socket | None = None
        try:
            # As bytes: getaddrinfo loads the tables of international names (1 MB) for a str, even for 127.0.0.1.
            host = (parts.hostname or "").encode()
            family, kind, _, _, address = socket.getaddrinfo(host, parts.port or 80, type=socket.SOCK_STREAM)[0]
            self._socket = socket.socket(family, kind | socket.SOCK_NONBLOCK)
            if (code := self._socket.connect_ex(address)) not in (0, errno.EINPROGRESS):
                self._fail(code)
        except OSError as error:
            self._end(Answer(f"cannot be reached ({error.strerror})"))

    @property
    def reading(self) -> tuple[int, ...]:
        """The descriptor to wait for until it can be read."""
        return () if self._socket is None or self._request else (self._socket.fileno(),)

    @property
    def writing(self) -> tuple[int, ...]:
        """The descriptor to wait for until it can be written."""
        return (self._socket.fileno(),) if self._socket is not None and self._request else ()

    def advance(self, now: float) -> None:
        """Go on as far as it goes without waiting."""
        if self._socket is None:
            return
        if now >= self.deadline:
            self._end(Answer(f"does not answer within {self._timeout:g} s"))
        elif code := self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._fail(code)
        else:
            try:
                self._exchange(self._socket)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                self._fail(error.errno or 0)

    def close(self) -> None:
        """Stop asking."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _exchange(self, channel: socket.socket) -> None:
        if self._request:
            self._request = self._request[channel.send(self._request) :]
            return
        chunk = channel.recv(_CHUNK if self._take else _LONGEST)
        self._received += chunk if len(self._received) < _LONGEST else b""
        if match := _STATUS_LINE.match(self._received):
            status = int(match[1])
            if self._take and chunk and self._taken < _MOST:
                self._taken += len(chunk)
                self._take(chunk)
            else:
                self._end(Answer(f"answers {status}", healthy=200 <= status < 300, status=status))
        elif not chunk or len(self._received) >= _LONGEST:
            self._end(Answer("closes the connection" if not self._received else "does not answer in HTTP"))

    def _fail(self, code: int) -> None:
        self._end(Answer("refuses connections" if code == errno.ECONNREFUSED else f"cannot be reached ({os.strerror(code)})"))

    def _end(self, answer: Answer) -> None:
        self.answer = answer
        self.close()
