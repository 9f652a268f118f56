"""Search for the cause in the output of a server that has ended: the first error of the first process that failed.

Python prints the errors of a chain with the first one first. vLLM's processes print their errors one after the other, each as an error of
its own, and refer to an earlier one ("See root cause above"). Errors that torch, the API server and asyncio print afterwards are echoes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from vllm_safe.causes.death_patterns import signal_of
from vllm_safe.causes.first_trouble import LONGEST, SAYS_MORE, WELL
from vllm_safe.causes.messages import FOLLOWS, Message, classify_error
from vllm_safe.common.terminal import ESCAPES

_MOST_LINES, _MOST = 24, 3000  # lines and characters of one error

# The prefix of a log line. sglang, Go's slog and llama.cpp: a clock. vLLM: "(EngineCore pid=71) ERROR 11-23 22:10:48 [core.py:1512] ".
# uvicorn: "ERROR:    ". torch: "[rank0]:[E1123 22:10:48.71 Some.cpp:607] [Rank 0] ". NCCL: "box:93:512 [0] enqueue.cc:43 NCCL WARN ".
_CLOCK = r"(?:\[?\d{4}[-/]\d\d[-/]\d\d[T ][\d:.,+-]+Z?(?: \w+)*\]?:? +|time=\S+ |\d+\.\d\d\.\d{3}\.\d{3} (?=[IWE] ))?"
_PROCESS = r"(?P<process>(?:\([\w.:=/ -]*pid=\d+[^)]*\) ?)*)"
_LEVEL = (
    r"(?:(?:level=)?(?P<level>DEBUG|INFO|WARN(?:ING)?|ERROR|CRITICAL|[IWE](?= (?:\w+ )?\w+_|  ?\w+:))"
    r"(?::\s+| [\d:., -]{8,}(?:\[?(?P<source>[\w./-]+:\d+)\] ?)?)?)?"
)
_RANK = r"(?:\[[\w ]*[Rr]ank ?\d+\]:? ?)?"
_TORCH = rf"(?P<rank>{_RANK})(?:\[(?P<torch>[DIWEF])\d{{4}} [^\]]*\] ?)?(?:\[PG [^\]]*\] ?)?{_RANK}"
_NCCL = r"(?:\S+:\d+:\d+ \[-?\d+\] (?:\S+:\d+ )?NCCL (?:(?P<nccl>INFO|TRACE)|WARN) )?"
_HEADER = re.compile(_CLOCK + _PROCESS + _LEVEL + _TORCH + _NCCL)
_GROUP = re.compile(r" {0,6}[|+](?: |-+ ?\d* ?-*)")  # the prefix of each line of an ExceptionGroup's traceback
_HARMLESS = {"DEBUG", "INFO", "WARN", "WARNING", "D", "I", "W", "TRACE"}
_TRACEBACK = "Traceback (most recent call last):"
_CHAINS = ("The above exception was the direct cause of", "During handling of the above exception")
_EXCEPTION = re.compile(r"[A-Za-z_][\w.]*(?:\[[\w, ]+\])?(?::\s.*|:?$)", re.DOTALL)
# Errors without a traceback, as Python, argparse, pydantic, C++, Go, Rust and Node print them. _SOUNDS: lines that only sound like one.
_ERROR = re.compile(
    r"(?:[\w.]+\.)?\w+(?:Error|Exception)\b(?::|$)|Value error, |(?:[\w./ -]+: )?(?:[Ff]atal |FATAL )?(?:error|Error|ERROR)(?:\[\w+\])?: |"
    r"panic: |fatal(?: error)?: |thread '.*' panicked|terminate called|Uncaught |Failed: |Fatal "
)
_WARNING = re.compile(r"(?:\S+: )?(?:[Ww]arning|WARNING|[Nn]ote|\w+Warning): ")
_SOUNDS = re.compile(r"\b(?:error|failed|fatal|cannot|could ?n.t|unable to|denied)\b", re.IGNORECASE)
_ECHO = re.compile(
    r"[Ss]ee (?:the )?(?:root cause|stack ?trace)|EngineDeadError|"
    r"Engine ?[Cc]ore (?:encountered|failed to start|hit|initialization failed|process)|Engine (?:loop|process) |"
    r"WorkerProc (?:hit|failed|init)|[Ww]orker (?:proc )?\S+ (?:pid \d+ )?died|Got fatal signal|output_handler failed|"
    r"RuntimeError: cancelled|CancelledError|Connection (?:closed|reset) by peer|Broken ?[Pp]ipe|TCPStore|watchdog thread|"
    r"leaked \w+ objects|"
    r"^ptrace: |resource_tracker|Exception ignored|^(?:SystemExit|KeyboardInterrupt)\b|exiting due to model loading error|"
    r"DistBackendError.*Rank \d+ is"
)
# Errors of a client's request.
_REQUEST = re.compile(
    r"Error in preprocessing prompt|maximum context length|Exception in ASGI|(?:VLLM|Request)ValidationError|"
    r"Error in applying chat template|HTTP/1\.1\" 4\d\d"
)
# The advice that torch adds to each CUDA error.
_BOILERPLATE = re.compile(
    r"CUDA kernel errors might be|For debugging consider|Compile with `TORCH|Search for `cuda|Device-side assertion tracking"
)
_LOOKUPS = ("KeyError", "AttributeError", "IndexError", "StopIteration", "FileNotFoundError")
_VAGUE = "damaged-file"  # the error of the code that read the file names the file
# Errors that do not name the operation that failed: the source line that raised them does.
_BARE = re.compile(r"[\w.]+:?|BlockingIOError: \[Errno 11\] Resource temporarily unavailable")
_SAYS_MORE = re.compile(SAYS_MORE)
_QUOTED = re.compile(r"\A\w+: Worker failed with error '(?P<inner>.*?)(?:\n?', please check .*)?\Z", re.DOTALL)


class _LoggedError(NamedTuple):
    """One error in the log.

    line: the number of its first line. link: the phrase with which Python chains it to the previous error of its process, or "".
    """

    line: int
    text: str
    process: str
    traceback: bool = False
    link: str = ""
    request: bool = False  # an error of a client's request


def find_cause(head: Sequence[str], tail: Sequence[str], *, served: bool, recorded: str = "") -> Message | None:
    """Return the error that ended a server, or None if it printed none.

    head: the lines that FirstTrouble kept (first_trouble.py). tail: the last lines of the log. served: whether the server was ever ready.
    recorded: the error that the main process wrote down when the server ended, or "". It saw every line, so its error goes first:
    `why` cannot say anything else than `systemctl status`.
    """
    if recorded:
        return classify_error(recorded)
    parts = [_read(lines) for lines in (head, tail[_after_well(tail) :], tail)]
    own = [[one for one in errors if not (_is_echo(one.text) or (served and one.request))] for errors in parts]
    engines = [[one for one in errors if not (served and one.process.startswith("(APIServer "))] for errors in own]
    for errors in (*engines, *own[:2]):
        if root := _root(errors):
            return root
    deaths = [message for errors in parts for one in errors if (message := classify_error(one.text)).code in FOLLOWS]
    if by_signal := next((message for message in deaths if signal_of(message.figures)), None):
        return by_signal
    for errors in (own[1], own[0]):
        if errors:
            return classify_error(next((one for one in reversed(errors) if _ERROR.match(one.text)), errors[-1]).text)
    return next((message for message in deaths if message.code == "worker-died"), deaths[0] if deaths else None)


def _after_well(lines: Sequence[str]) -> int:
    return max((number for number, line in enumerate(lines, 1) if WELL.search(line[:LONGEST].encode(errors="replace"))), default=0)


def _is_echo(text: str) -> bool:
    return bool(_ECHO.search(text.partition("\n")[0])) or classify_error(text).code in FOLLOWS


def _root(errors: Sequence[_LoggedError]) -> Message | None:
    """Return the first error that has a traceback or matches a pattern; of a chain of errors, the most specific one."""
    for number, one in enumerate(errors):
        if one.traceback:
            return _of_chain(list(_chain(errors, number)))
        message = classify_error(one.text)
        if message.code:
            return message
    return None


def _chain(errors: Sequence[_LoggedError], first: int) -> Iterator[_LoggedError]:
    yield errors[first]
    for one in errors[first + 1 :]:
        if one.process == errors[first].process:
            if not one.link:
                return
            yield one


def _of_chain(chain: Sequence[_LoggedError]) -> Message:
    """Return the first error of a chain that matches a pattern, else its first error.

    Where the first error is a failed lookup, the second error is returned: the handler that raised it explains the first.
    """
    messages = [classify_error(one.text) for one in chain]
    known = [message for message in messages if message.code]
    if known:
        return next((message for message in known if message.code != _VAGUE), known[0])
    return messages[1] if len(chain) > 1 and chain[0].text.startswith(_LOOKUPS) else messages[0]


class _ErrorReader:
    """A reader of the lines of one process: Python prints an error over several lines."""

    def __init__(self, process: str) -> None:
        self._process = process
        self._line = 0
        self._lines: list[str] = []
        self._mark = ""  # the level and source line that the logger printed before the lines of the error
        self._in_traceback = self._of_traceback = self._request = False
        self._link = self._next_link = self._standing = ""

    def take(self, number: int, body: str, mark: str) -> Iterator[_LoggedError]:
        """Read one line; yield an error that ended before it."""
        stripped = body.strip()
        chain = next((phrase for phrase in _CHAINS if stripped.startswith(phrase)), "")
        self._request |= bool(_REQUEST.search(body))
        if stripped.endswith(_TRACEBACK) or chain:
            yield from self.close(keep_link=True)
            self._in_traceback, self._next_link = not chain, chain or self._next_link
        elif self._in_traceback and (not stripped or body[0].isspace()):
            self._standing = stripped if _SAYS_MORE.match(body) else self._standing
        elif self._in_traceback and _EXCEPTION.match(body):
            context = f" ({self._standing})" if self._standing and _BARE.fullmatch(stripped) else ""
            self._open(number, stripped + context, mark, of_traceback=True)
        elif self._lines and mark == self._mark and self._goes_on(body, stripped):
            self._lines += [] if _BOILERPLATE.match(stripped) else [stripped]
        else:
            yield from self.close()
            if (
                stripped
                and not _WARNING.match(stripped)
                and (mark or _ERROR.match(stripped) or _SOUNDS.search(stripped) or classify_error(stripped).code)
            ):
                self._open(number, stripped, mark, of_traceback=False)

    def close(self, *, keep_link: bool = False) -> Iterator[_LoggedError]:
        """Yield the error that is being read, if there is one."""
        if self._lines:
            text = "\n".join(self._lines)[:_MOST].rstrip()
            quoted = _QUOTED.match(text)
            text = quoted["inner"] if quoted else text
            yield _LoggedError(self._line, text, self._process, self._of_traceback, self._link, request=self._request)
            if not keep_link:
                self._request = False
        self._lines, self._standing = [], ""

    def _open(self, number: int, text: str, mark: str, *, of_traceback: bool) -> None:
        self._line, self._lines, self._mark, self._of_traceback, self._in_traceback = number, [text], mark, of_traceback, False
        self._link, self._next_link = (self._next_link, "") if of_traceback else ("", self._next_link)

    def _goes_on(self, body: str, stripped: str) -> bool:
        if len(self._lines) >= _MOST_LINES:
            return False
        if not self._of_traceback:
            return body[:1].isspace() or self._lines[-1].endswith(":")
        # An empty line ends the error where no prefix tells which process the next line is from.
        return bool(stripped) or bool(self._process and self._lines[-1])


def _read(lines: Iterable[str]) -> list[_LoggedError]:
    """Return the errors in the lines of a log, in the order of their first lines."""
    readers: dict[str, _ErrorReader] = {}
    errors: list[_LoggedError] = []
    for number, line in enumerate(lines):
        plain = ESCAPES.sub("", line[:LONGEST]).rstrip()
        if not (header := _HEADER.match(plain)):
            continue
        process = header["process"].strip() or header["rank"].strip()
        reader = readers.setdefault(process, _ErrorReader(process))
        level = header["level"] or header["torch"] or header["nccl"] or ""
        if level in _HARMLESS:
            errors += reader.close()
        else:
            errors += reader.take(
                number,
                _GROUP.sub("", plain[header.end() :], count=1) if "|" in plain else plain[header.end() :],
                f"{level} {header['source'] or ''}".strip(),
            )
    for reader in readers.values():
        errors += reader.close()
    return sorted(errors)
