"""One HTTP request to the server, without blocking: the main process has other work meanwhile.

http.client would need two lines and 6 MB (it imports email and ssl), and would block.
"""

from __future__ import annotations

import errno
import os
import re
import socket
from collections.abc import Callable, Mapping
from typing import NamedTuple
from urllib.parse import urlsplit

from vllm_safe.launch.resolver import Resolution

TIMEOUT = 5.0  # seconds without an answer after which the request has failed
_LONGEST = 4096  # bytes that are searched for the status line
_CHUNK = 1 << 16
_MOST = 8 << 20  # bytes: the limit of an answer that is read to its end
_STATUS_LINE = re.compile(rb"HTTP/\d\.\d (\d{3})\b[^\n]*\n")


class Answer(NamedTuple):
    """An answer to a request.

    text: a description for people, to follow "the health URL". status: the HTTP status, 0 for none. figures: those of a long answer.
    """

    text: str
    healthy: bool = False
    status: int = 0
    figures: Mapping[str, float] = {}


_REFUSES = Answer("refuses connections")


class Probe:
    """One GET, or one POST of a JSON text.

    The caller waits until `reading` or `writing` is ready or `deadline` has passed, calls `advance`, and repeats this until there is an
    `answer`, which is the status line. With `take`, the rest is read as well and handed on in chunks. The addresses are tried in order; the
    first one that accepts the connection gets the request.
    """

    def __init__(  # noqa: PLR0913 - each parameter is a part of the request
        self,
        url: str,
        found: Resolution,
        now: float,
        *,
        timeout: float = TIMEOUT,
        json: str = "",
        key: str = "",
        take: Callable[[bytes], None] | None = None,
    ) -> None:
        self.deadline = self._last_deadline = now + timeout
        self._timeout, self._take, self._taken = timeout, take, 0
        self.answer: Answer | None = None
        parts = urlsplit(url)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        version = "1.0" if take else "1.1"  # HTTP/1.0 has no chunked encoding, whose chunk sizes would break the lines
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
        self._left, self._connected = list(found.addresses), False
        self._failure = Answer(f"cannot be reached ({found.error})")
        self._connect(now)

    @property
    def reading(self) -> tuple[int, ...]:
        """The descriptor to wait for until it is readable."""
        return () if self._socket is None or self._request else (self._socket.fileno(),)

    @property
    def writing(self) -> tuple[int, ...]:
        """The descriptor to wait for until it is writable."""
        return (self._socket.fileno(),) if self._socket is not None and self._request else ()

    def advance(self, now: float) -> None:
        """Continue as far as possible without blocking."""
        if self._socket is None:
            return
        if now >= self.deadline:
            self._fail(Answer(f"does not answer within {self._timeout:g} s"), now)
        elif code := self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._fail(_failure(code), now)
        else:
            try:
                self._exchange(self._socket)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                self._fail(_failure(error.errno or 0), now)

    def close(self) -> None:
        """Close the connection."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _exchange(self, channel: socket.socket) -> None:
        if self._request:
            self._request = self._request[channel.send(self._request) :]
            self._connected, self.deadline = True, self._last_deadline
            return
        chunk = channel.recv(_CHUNK if self._take else _LONGEST)
        self._received += chunk if len(self._received) < _LONGEST else b""
        if match := _STATUS_LINE.match(self._received):
            status = int(match[1])
            if self._take and chunk and self._taken < _MOST:
                self._taken += len(chunk)
                self._take(chunk)
            else:
                self._end(Answer(f"returns HTTP {status}", healthy=200 <= status < 300, status=status))
        elif not chunk or len(self._received) >= _LONGEST:
            self._end(Answer("closes the connection" if not self._received else "does not speak HTTP"))

    def _connect(self, now: float) -> None:
        """Connect to the next address, with its share of the remaining time."""
        while self._left:
            (family, address), *self._left = self._left
            self.deadline = now + (self._last_deadline - now) / (1 + len(self._left))
            try:
                self._socket = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
                code = self._socket.connect_ex(address)
            except OSError as error:  # EAFNOSUPPORT: a kernel without IPv6
                code = error.errno or 0
            if code in (0, errno.EINPROGRESS):
                return
            self.close()
            self._remember(_failure(code))
        self._end(self._failure)

    def _fail(self, failure: Answer, now: float) -> None:
        """End with the failure, or try the next address if this one never accepted the connection."""
        if self._connected:
            self._end(failure)
            return
        self.close()
        self._remember(failure)
        self._connect(now)

    def _remember(self, failure: Answer) -> None:
        """Keep the most informative failure: a refused connection, since the machine responds, else the last failure."""
        self._failure = self._failure if self._failure == _REFUSES else failure

    def _end(self, answer: Answer) -> None:
        self.answer = answer
        self.close()


def _failure(code: int) -> Answer:
    return _REFUSES if code == errno.ECONNREFUSED else Answer(f"cannot be reached ({os.strerror(code)})")
