"""One question to the server, "do you serve?", asked over HTTP without ever waiting: the main process has more to do meanwhile.

http.client would do it in two lines and 6 MB (it brings email and ssl), and would block.
"""

from __future__ import annotations

import errno
import os
import re
import socket
from dataclasses import dataclass
from urllib.parse import urlsplit

TIMEOUT = 5.0  # seconds until a server that says nothing counts as one that does not answer
_LONGEST = 4096  # bytes to look for the status line in
_STATUS_LINE = re.compile(rb"HTTP/\d\.\d (\d{3})\b[^\n]*\n")


@dataclass(frozen=True)
class Answer:
    """`text` says it to a person, as the end of "the health URL ..."."""

    text: str
    healthy: bool = False


class Probe:
    """One GET. Wait until `reading` or `writing` is ready or `deadline` has passed, then call `advance`, until there is an `answer`."""

    def __init__(self, url: str, now: float) -> None:
        self.deadline = now + TIMEOUT
        self.answer: Answer | None = None
        parts = urlsplit(url)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._request = f"GET {target} HTTP/1.1\r\nHost: {parts.netloc}\r\nUser-Agent: vllm-safe\r\nConnection: close\r\n\r\n".encode()
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
            self._end(Answer(f"does not answer within {TIMEOUT:g} s"))
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
        chunk = channel.recv(_LONGEST)
        self._received += chunk
        if match := _STATUS_LINE.match(self._received):
            status = int(match[1])
            self._end(Answer(f"answers {status}", healthy=200 <= status < 300))
        elif not chunk or len(self._received) >= _LONGEST:
            self._end(Answer("closes the connection" if not self._received else "does not answer in HTTP"))

    def _fail(self, code: int) -> None:
        self._end(Answer("refuses connections" if code == errno.ECONNREFUSED else f"cannot be reached ({os.strerror(code)})"))

    def _end(self, answer: Answer) -> None:
        self.answer = answer
        self.close()
