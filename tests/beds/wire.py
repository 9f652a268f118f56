"""The protocol of QEMU's monitor and its guest agent: one line of JSON in each direction over a Unix socket."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Mapping
from itertools import count
from pathlib import Path


class WireError(Exception):
    """The other side did not answer in time, closed the connection, or refused the command."""


class Wire:
    """A connection that several threads may use. Each call waits for its own answer."""

    def __init__(self, path: Path, *, agent: bool = False) -> None:
        """Connect. `agent`: the other side is the guest agent, which may answer late or never, and must then be synchronised again."""
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(path))
        self._lock = threading.Lock()
        self._rest = b""
        self._agent = agent
        self._in_step = not agent
        self._numbers = count(1)

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def call(self, command: str, arguments: Mapping[str, object] | None = None, *, timeout: float = 30) -> object:
        """Run `command` and return its result. `timeout` is in seconds. Raises WireError."""
        end = time.monotonic() + timeout
        with self._lock:
            if not self._in_step:
                self._synchronise(end)
            self._in_step = not self._agent  # until the answer is read
            answer = self._ask(command, arguments or {}, end)
            self._in_step = True
        if "error" in answer:
            raise WireError(f"{command}: {answer['error']}")
        return answer["return"]

    def _synchronise(self, end: float) -> None:
        """Request a number, and drop every answer before it: those belong to commands whose time was over."""
        number = next(self._numbers)
        answer = self._ask("guest-sync", {"id": number}, end)
        while answer.get("return") != number:
            answer = self._read(end)

    def _ask(self, command: str, arguments: Mapping[str, object], end: float) -> dict[str, object]:
        question = json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n"
        self._socket.settimeout(max(end - time.monotonic(), 0.01))
        try:
            self._socket.sendall(question)
        except OSError as error:
            raise WireError(f"{command}: {error}") from None
        return self._read(end)

    def _read(self, end: float) -> dict[str, object]:
        """Return the next answer. QEMU's greeting and its events are skipped."""
        while True:
            while b"\n" not in self._rest:
                self._socket.settimeout(max(end - time.monotonic(), 0.01))
                try:
                    more = self._socket.recv(65536)
                except OSError as error:
                    raise WireError(f"no answer: {error}") from None
                if not more:
                    raise WireError("the connection was closed")
                self._rest += more
            line, _, self._rest = self._rest.partition(b"\n")
            answer = json.loads(line)
            if "return" in answer or "error" in answer:
                return dict(answer)
