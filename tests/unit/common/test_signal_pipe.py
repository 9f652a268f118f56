"""Signals as bytes in a pipe, in a process of its own: what is set is the process's, for good."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import os, select, signal
from vllm_safe.common.signal_pipe import asks_to_stop, open_signal_pipe, read_signals
pipe = open_signal_pipe((signal.SIGTERM, signal.SIGHUP))
print(read_signals(pipe), asks_to_stop(b""))
os.kill(os.getpid(), signal.SIGHUP)
assert select.select([pipe], [], [], 10)[0]
print(asks_to_stop(read_signals(pipe)))
for _ in range(100_000):  # more than the pipe holds: none of them blocks us, or is printed as a warning
    os.kill(os.getpid(), signal.SIGTERM)
print(asks_to_stop(read_signals(pipe)))
"""


def test_a_signal_wakes_up_a_loop_that_waits_and_is_read_once() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr, done.returncode) == ("b'' False\nFalse\nTrue\n", "", 0)
