"""The program vllm-safe-record NAME of vllm-safe-record@NAME.service. It only reads and records: its failure never affects the model."""

from __future__ import annotations

import select
import signal
import sys
import time

from vllm_safe.common.errors import EXIT_MISUSE
from vllm_safe.common.notify import notify
from vllm_safe.common.paths import RUNS
from vllm_safe.common.signal_pipe import open_signal_pipe
from vllm_safe.record.recorder import Recorder

LEAVE = 3.0  # seconds after SIGTERM for recording the end of the unit


def main() -> None:
    """Run the console script."""
    if len(sys.argv) != 2 or "/" in sys.argv[1]:
        sys.stderr.write("vllm-safe-record takes the name of one model; it is started with vllm@NAME.service\n")
        sys.exit(EXIT_MISUSE)
    record_model(sys.argv[1], str(RUNS))


def record_model(name: str, runs: str, root: str = "") -> None:
    """Record the model until SIGTERM."""
    stop = open_signal_pipe((signal.SIGTERM, signal.SIGINT))
    recorder = Recorder(name, runs, root, _say)
    recorder.catch_up(*_clocks())
    recorder.look(*_clocks())
    notify(READY="1", STATUS=f"recording vllm@{name}.service to {runs}/{name}")
    while not select.select([stop], [], [], recorder.pause)[0]:
        recorder.look(*_clocks())
    until = time.monotonic() + LEAVE
    while not recorder.leave(*_clocks()) and time.monotonic() < until:
        select.select([], [], [], 0.2)
    recorder.close()


def _clocks() -> tuple[float, float]:
    """Return the monotonic clock, and Unix time."""
    return time.monotonic(), time.time()


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
