"""The beginning of a server's trouble, kept however much it prints afterwards: in it stands why it ended.

torch prints a stack of C++ frames for each worker that loses its first one, and the last lines of the log are then nothing else. Here it
is only gathered, cheaply and within bounds; what it means is found when the server has ended, by causes/cause.py.
"""

from __future__ import annotations

import re

from vllm_safe.common.terminal import ESCAPES_IN_BYTES

KEPT = 1 << 15  # bytes
LONGEST = 2000  # bytes of a line
QUIET = 600.0  # seconds without a word of trouble, after which what comes is another one

_WORDS = re.compile(
    rb"error|exception|traceback|fatal|panic|fail|cannot|can't|could ?n.t|unable|denied|refused|no such|not found|out of memory|"
    rb"unavailable|nccl warn|assertion|terminate called|killed|died",
    re.IGNORECASE,
)
# The level that a logger gave to a line: vLLM's own, and its processes' prefix before it.
_LEVEL = re.compile(rb"(?:\([\w.:= -]*pid=\d+\) )?(DEBUG|INFO|WARNING|ERROR|CRITICAL)\b")
# What an `assert` compared, or what could not fork or lock, is all that some errors have to say: lines of a program, in a traceback.
SAYS_MORE = r" {4,}(?:assert |.*\b(?:os\.fork|_fork_exec|flock|lockf)\()"
# Where Python, C++, Rust, Go and Node stood, line by line.
_FRAME = re.compile(
    rb"(?:\([\w.:= -]*pid=\d+\) )?(?:ERROR [^\]]*\] )?(?:  File \"|(?!%b) {4}|\t)|frame #\d+: |goroutine \d" % SAYS_MORE.encode()
)
# It serves, or its start got on: errors before this were survived. A count of shards is none: tqdm prints the last one again as it dies.
WELL = re.compile(
    rb"\"POST \S+ HTTP/[\d.]+\" 2\d\d|generation throughput: (?!0\.0 )\d|Loading weights took |Model loading took |"
    rb"Available KV cache memory: |Graph capturing finished|init engine \(profile|Starting vLLM (?:API )?server |"
    rb"Application startup complete"
)


class FirstTrouble:
    """What a server printed from its first word of trouble on, without stacks. Times are the caller's."""

    def __init__(self) -> None:
        self._kept: list[bytes] = []
        self._size = 0
        self._at = 0.0  # when the last word of trouble came
        self._torn = b""

    def hear(self, chunk: bytes, now: float, *, serves: bool) -> None:
        """Take what the server printed, cut anywhere. serves: errors of vLLM's API server are then those of clients, or echoes."""
        if not self._kept and not self._torn and not _WORDS.search(chunk):
            self._torn = chunk.rpartition(b"\n")[2][-LONGEST:]
            return
        lines = (self._torn + chunk).replace(b"\r", b"\n").split(b"\n")
        self._torn = lines.pop()[:LONGEST]
        for line in lines:
            self._hear_line(ESCAPES_IN_BYTES.sub(b"", line[:LONGEST]) if b"\x1b" in line else line[:LONGEST], now, serves=serves)

    def lines(self) -> list[str]:
        """All of it."""
        return [line.decode(errors="replace") for line in (*self._kept, self._torn if self._kept or _WORDS.search(self._torn) else b"")]

    def _hear_line(self, line: bytes, now: float, *, serves: bool) -> None:
        if WELL.search(line):
            self._kept, self._size = [], 0
            return
        if self._is_trouble(line, serves=serves):
            if self._kept and now - self._at > QUIET:
                self._kept, self._size = [], 0
            self._at = now
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
