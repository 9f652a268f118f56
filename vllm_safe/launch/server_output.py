"""The output of the server: copied to the journal unchanged, with its last lines kept for `why`."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable

from vllm_safe.common.terminal import ESCAPES

_CHUNK = 1 << 16  # bytes: the capacity of a pipe
_KEPT = 1 << 16  # bytes at the end of the output that are kept
_LONGEST = 2000  # characters of each line that are handed out


class Output:
    """A copy from one pipe to the journal that never blocks on either.

    It buffers one chunk: while the journal accepts nothing, nothing is read, and the server blocks on its full pipe as it would on the
    journal.
    """

    def __init__(self, sink: int, hear: Callable[[bytes], None]) -> None:
        self._source: int | None = None
        self._hear = hear
        self._sink: int | None = sink
        self._pending = b""
        self._at_line_start = True
        self._end = b""
        os.set_blocking(sink, False)

    def read_from(self, source: int) -> None:
        """Copy this pipe from now on. `hear` is called with each chunk."""
        os.set_blocking(source, False)
        self._source = source

    @property
    def reading(self) -> tuple[int, ...]:
        """The descriptor to wait for until it is readable."""
        return () if self._source is None or self._pending else (self._source,)

    @property
    def writing(self) -> tuple[int, ...]:
        """The descriptor to wait for until it is writable."""
        return (self._sink,) if self._sink is not None and self._pending else ()

    def advance(self) -> None:
        """Read available data, and write as much as possible."""
        if self._source is not None and not self._pending:
            try:
                self._take(os.read(self._source, _CHUNK))
            except BlockingIOError:
                return
        self._write()

    def say(self, text: str, *, prefix: str = "") -> None:
        """Add lines of the main process between those of the server."""
        lines = "".join(f"{prefix}{line}\n" for line in text.splitlines())
        self._append((b"" if self._at_line_start else b"\n") + lines.encode(errors="replace"))
        self._write()

    def finish(self, seconds: float) -> None:
        """Copy the rest of the pipe, for at most this time in seconds: a process that the server left behind may print for ever."""
        until = time.monotonic() + seconds
        while (self.reading or self.writing) and (left := until - time.monotonic()) > 0:
            if not any(select.select(self.reading, self.writing, (), left if self.writing else 0)):
                break
            self.advance()

    def lines(self, most: int = _KEPT) -> list[str]:
        """Return the last lines, at most `most`, each cut to a bound, without terminal escape sequences."""
        return [line[:_LONGEST] for line in ESCAPES.sub("", self._end.decode(errors="replace")).splitlines()[-most:]]

    def _take(self, chunk: bytes) -> None:
        if not chunk and self._source is not None:  # every process that held the other end has exited
            os.close(self._source)
            self._source = None
        self._end = (self._end + chunk)[-_KEPT:]
        self._hear(chunk)
        self._append(chunk)

    def _append(self, data: bytes) -> None:
        if data and self._sink is not None:
            self._pending += data
            self._at_line_start = data.endswith(b"\n")

    def _write(self) -> None:
        if self._sink is not None and self._pending:
            try:
                self._pending = self._pending[os.write(self._sink, self._pending) :]
            except BlockingIOError:
                pass
            except OSError:  # the reader has gone: only the output of the server is lost
                self._sink, self._pending = None, b""
