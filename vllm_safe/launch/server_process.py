"""The server process: a child in the unit's own cgroup, whose end is noticed and whose output is kept."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from vllm_safe.contract.launch_file import Launch
from vllm_safe.launch.engine_files import cold_mark

CANNOT_RUN = 127  # the exit status of a shell if the program does not exist


class Server:
    """A running child. output: the reading end of the pipe for its stdout and stderr. Raises OSError if it cannot be forked."""

    def __init__(self, launch: Launch, env: Mapping[str, str]) -> None:
        self.output, output = os.pipe()
        try:
            self.pid = os.fork()
        except OSError:
            os.close(self.output)
            os.close(output)
            raise
        if self.pid == 0:
            _become(launch, env, output)
        os.close(output)

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the server alone: vLLM's API server ends its workers itself, and hangs if they get the signal too."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def reap(self) -> int | None:
        """Return the server's wait status once it has ended, else None."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        return status if pid else None


def record_engine_files(launch: Launch) -> None:
    """Have a separate process record which files of the engine this start has read, if the start is marked as cold."""
    if not launch.serve_file or not cold_mark(launch.serve_file).exists():
        return
    try:
        pid = os.fork()
    except OSError:  # EAGAIN at limits.tasks_max, ENOMEM at the memory limit: the next cold start tries again
        return
    if pid == 0:
        _become_file_recorder(launch)
    os.waitpid(pid, 0)


def _become_file_recorder(launch: Launch) -> NoReturn:
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if os.fork() == 0:  # a grandchild is reaped by systemd
            from vllm_safe.launch import engine_reader  # noqa: PLC0415 - imported in the child only, which ends soon

            engine_reader.record_used_files(launch)
    finally:
        os._exit(0)


def describe_ending(status: int) -> str:
    """Describe a wait status: "exit status 1", "killed by SIGKILL"."""
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return f"exit status {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:  # a real-time signal
        return f"killed by signal {-code}"


def _become(launch: Launch, env: Mapping[str, str], output: int) -> NoReturn:
    """Turn the forked child into the server. On failure, print the error to its output and exit as a shell would."""
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)  # Python ignores the last two, and exec inherits that
        os.setsid()
        os.dup2(output, 1)
        os.dup2(output, 2)
        # Set here and not in the unit: the main process must outlive the server, and be able to read, to report why the server died.
        _set_oom_score_adj(launch.oom_score_adj)
        _set_io_scheduling_class(launch.io_scheduling_class)
        _read_engine_files(launch)
        os.execvpe(launch.argv[0], list(launch.argv), dict(env))  # noqa: S606 - a shell is not wanted
    except OSError as error:
        os.write(2, f"vllm-safe: error: cannot run {launch.argv[0]}: {error.strerror}\n".encode(errors="replace"))
    finally:
        os._exit(CANNOT_RUN)


def _read_engine_files(launch: Launch) -> None:
    if not launch.serve_file:
        return
    from vllm_safe.launch import engine_reader  # noqa: PLC0415 - imported in the child only, which is replaced by exec at once

    engine_reader.read_ahead_of_server(launch, lambda line: os.write(2, f"vllm-safe: {line}\n".encode(errors="replace")))


def _set_oom_score_adj(score: int) -> None:
    try:
        Path("/proc/self/oom_score_adj").write_text(str(score), encoding="ascii")
    except OSError:  # a value below 0 requires root
        os.write(2, f"vllm-safe: the kernel refused oom_score_adj {score}; it is unchanged\n".encode())


def _set_io_scheduling_class(name: str) -> None:
    if not name:
        return
    from vllm_safe.common import libc  # noqa: PLC0415 - imported in the child only, which is replaced by exec at once

    try:
        libc.set_io_priority(0, libc.IO_CLASSES[name])
    except OSError as error:
        os.write(2, f"vllm-safe: the kernel refused I/O scheduling class {name}: {error.strerror}\n".encode(errors="replace"))
