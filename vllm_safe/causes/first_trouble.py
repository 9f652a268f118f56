"""The first lines of a server's trouble, kept however much it prints afterwards: they contain the reason for its end.

torch prints a stack of C++ frames for each worker that loses the first one, and these frames fill the last lines of the log. This module
only collects lines, cheaply and within bounds; causes/cause.py finds their meaning when the server has ended.
"""

from __future__ import annotations

import re

from vllm_safe.common.terminal import ESCAPES_IN_BYTES

KEPT = 1 << 15  # bytes
LONGEST = 2000  # bytes of a line
QUIET = 600.0  # seconds without a line of trouble, after which the next such line begins a new trouble

_WORDS = re.compile(
    rb"error|exception|traceback|fatal|panic|fail|cannot|can't|could ?n.t|unable|denied|refused|no such|not found|out of memory|"
    rb"unavailable|nccl warn|assertion|terminate called|killed|died",
    re.IGNORECASE,
)
# The level of a log line of vLLM, after the prefix of its process.
_LEVEL = re.compile(rb"(?:\([\w.:= -]*pid=\d+\) )?(DEBUG|INFO|WARNING|ERROR|CRITICAL)\b")
# Source lines in a traceback that are the only information in some errors: an `assert`, or a call that could not fork or lock.
SAYS_MORE = r" {4,}(?:assert |.*\b(?:os\.fork|_fork_exec|flock|lockf)\()"
# Lines of a stack trace of Python, C++, Rust, Go and Node.
_FRAME = re.compile(
    rb"(?:\([\w.:= -]*pid=\d+\) )?(?:ERROR [^\]]*\] )?(?:  File \"|(?!%b) {4}|\t)|frame #\d+: |goroutine \d" % SAYS_MORE.encode()
)
# Lines that show that the server serves, or that its start has progressed: it has survived all errors before them. A count of shards is
# no such line: tqdm prints the last one again as it dies.
WELL = re.compile(
    rb"\"POST \S+ HTTP/[\d.]+\" 2\d\d|generation throughput: (?!0\.0 )\d|Loading weights took |Model loading took |"
    rb"Available KV cache memory: |Graph capturing finished|init engine \(profile|Starting vLLM (?:API )?server |"
    rb"Application startup complete"
)


class FirstTrouble:
    """The lines that a server printed from its first line of trouble on, without stack traces. Times are seconds of the caller's clock."""

    def __init__(self) -> None:
        self._kept: list[bytes] = []
        self._size = 0
        self._last_trouble = 0.0  # the time of the last line of trouble
        self._torn = b""

    def read_output(self, chunk: bytes, now: float, *, serves: bool) -> None:
        """Take a chunk of the output, which may be cut anywhere.

        serves: the server is ready. Errors of vLLM's API server are then errors of clients, or echoes.
        """
        if not self._kept and not self._torn and not _WORDS.search(chunk):
            self._torn = chunk.rpartition(b"\n")[2][-LONGEST:]
            return
        lines = (self._torn + chunk).replace(b"\r", b"\n").split(b"\n")
        self._torn = lines.pop()[:LONGEST]
        for line in lines:
            self._take_line(ESCAPES_IN_BYTES.sub(b"", line[:LONGEST]) if b"\x1b" in line else line[:LONGEST], now, serves=serves)

    def lines(self) -> list[str]:
        """Return all kept lines."""
        return [line.decode(errors="replace") for line in (*self._kept, self._torn if self._kept or _WORDS.search(self._torn) else b"")]

    def _take_line(self, line: bytes, now: float, *, serves: bool) -> None:
        if WELL.search(line):
            self._kept, self._size = [], 0
            return
        if self._is_trouble(line, serves=serves):
            if self._kept and now - self._last_trouble > QUIET:
                self._kept, self._size = [], 0
            self._last_trouble = now
        elif not self._kept:
            return
        if self._size < KEPT and not _FRAME.match(line):
            self._kept.append(line)
            self._size += len(line)

    @staticmethod
    def _is_trouble(line: bytes, *, serves: bool) -> bool:
        level = _LEVEL.match(line)
        if level and level[1] in {b"DEBUG", b"INFO", b"WARNING"}:
            return False
        if serves and line.startswith(b"(APIServer "):
            return False
        return _WORDS.search(line) is not None
