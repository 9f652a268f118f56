"""Execution of a program as user vllm: in vllm.slice, sandboxed, under limits, with its progress shown, and ended with the caller.

Everything that downloads code or models, or opens downloaded files, runs through this module and never as root. systemd-run creates a
transient service (works on systemd 252 to 262) with a fixed name, so that the next run finds and ends what a killed run left behind.

The program's stdout is data for the caller. Its stderr is shown as it arrives; on a terminal it goes through a pseudoterminal of its own,
so that the program can draw its progress but never gets root's terminal, from which it could read.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import selectors
import shlex
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from vllm_safe.common import run_lock
from vllm_safe.common.errors import Failure
from vllm_safe.common.kernfs import MODELS_SLICE
from vllm_safe.common.paths import HOME, USER
from vllm_safe.common.sizes import GIB
from vllm_safe.common.systemctl import show_properties
from vllm_safe.common.terminal import ESCAPES, last_line
from vllm_safe.sandbox.terminal_filter import TerminalFilter

TAIL = 64 * 1024  # bytes of stderr kept to explain a failure
_PROXIES = tuple(name for word in ("http_proxy", "https_proxy", "all_proxy", "no_proxy") for name in (word, word.upper()))
DATA = 4 * 1024 * 1024  # bytes of stdout kept at most: an untrusted program must not fill the caller's memory

# The sandbox: the program can read the system, writes only to `writable`, gains no privileges, and sees no home directory.
# ProtectHome=tmpfs would hide the homes too, but since systemd 257 it keeps the mode of /root, so that a `readable` path below it
# could not be reached.
SANDBOX = (
    "Type=exec",
    f"Slice={MODELS_SLICE}",
    "NoNewPrivileges=yes",
    "CapabilityBoundingSet=",
    "ProtectSystem=strict",
    "TemporaryFileSystem=/home:ro,mode=0755 /root:ro,mode=0755 /run/user:ro,mode=0755",
    "PrivateTmp=yes",
    "ProtectProc=invisible",
    "ProtectClock=yes",
    "ProtectHostname=yes",
    "ProtectControlGroups=yes",
    "ProtectKernelLogs=yes",
    "ProtectKernelModules=yes",
    "ProtectKernelTunables=yes",
    "LockPersonality=yes",
    "RestrictNamespaces=yes",
    "RestrictRealtime=yes",
    "RestrictSUIDSGID=yes",
    "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK",
    "SystemCallArchitectures=native",
    "KeyringMode=private",
    "UMask=0022",
    "LimitNOFILE=65536",
    "TasksMax=4096",
    "CPUWeight=10",
    "IOWeight=1",
    "OOMScoreAdjust=1000",
    "OOMPolicy=kill",
    "TimeoutStopSec=10",
)


@dataclass(frozen=True)
class Outcome:
    """The end of a program. `result` is systemd's: success, exit-code, signal, timeout, oom-kill ...; "not-started" if it never ran."""

    result: str
    status: int  # exit status of the program, or the number of the signal that ended it
    stdout: str
    stderr: str  # the last TAIL bytes, without terminal control sequences

    @property
    def ok(self) -> bool:
        """Whether the program exited with status 0."""
        return self.result == "success"

    @property
    def last_line(self) -> str:
        """The last non-empty line of stderr, or ""."""
        return last_line(self.stderr.splitlines())


@dataclass(frozen=True)
class AsVllm:
    """A step that runs `argv` as user vllm.

    unit: name of the transient service, without ".service"; purpose: what it does, in the imperative, for people.
    env: variables, never secrets; credentials: name -> file that root reads, which appears in $CREDENTIALS_DIRECTORY.
    writable: folders that it may write; readable: folders in /home, /root or /run/user that it may read.
    memory_max, swap_max: bytes; time_limit: seconds. Without `network` it has no network; without `devices` it has no GPU.
    """

    unit: str
    argv: tuple[str, ...]
    purpose: str
    env: Mapping[str, str] = field(default_factory=dict)
    writable: tuple[Path, ...] = ()
    readable: tuple[Path, ...] = ()
    credentials: Mapping[str, Path] = field(default_factory=dict)
    memory_max: int = 4 * GIB
    swap_max: int = 0
    time_limit: int | None = None
    network: bool = True
    devices: bool = False

    def describe(self) -> str:
        """Describe the purpose, and the program as a shell command."""
        return f"{self.purpose}, as user {USER}: {shlex.join(self.argv)}"

    def run(self) -> None:
        """Run the program to its end. Raises Failure if it does not succeed."""
        outcome = self.outcome()
        if not outcome.ok:
            raise program_failure(self, outcome)

    def command(self) -> tuple[str, ...]:
        """Return the command line of systemd-run."""
        properties = [
            *SANDBOX,
            f"MemoryMax={self.memory_max}",
            f"MemorySwapMax={self.swap_max}",
            f"PrivateNetwork={'no' if self.network else 'yes'}",
            f"PrivateDevices={'no' if self.devices else 'yes'}",
            *(f"ReadWritePaths={_quoted(path)}" for path in self.writable),
            *(f"BindReadOnlyPaths={_quoted(path)}" for path in self.readable),
            *(f"LoadCredential={name}:{path}" for name, path in self.credentials.items()),
            *([f"RuntimeMaxSec={self.time_limit}"] if self.time_limit else []),
            *(["SupplementaryGroups=video"] if self.devices else []),  # the group of the cards in Debian, as in vllm@.service
        ]
        environment = {"HOME": str(HOME), "LANG": "C.UTF-8", "TERM": os.environ.get("TERM", "dumb"), **self.env}
        return (
            *("systemd-run", "--wait", "--pipe", "--quiet", "--no-ask-password"),
            *(f"--unit={self.unit}", f"--description=vllm-safe: {self.purpose}", f"--uid={USER}", f"--gid={USER}"),
            *(f"--property={text}" for text in properties),
            *(f"--setenv={name}={value}" for name, value in environment.items()),
            *("--working-directory=/", "--", *(word.replace("$", "$$") for word in self.argv)),  # the manager expands $NAME
        )

    def outcome(self, *, quiet: bool = False) -> Outcome:
        """Run the program to its end and return how it ended. `quiet` hides its stderr. Raises Failure if it cannot be started here."""
        _require_systemd_and_user()
        with _ended_on_signals():
            _end(self.unit)  # left by a run that was killed; lock_unit excludes a concurrent run
            try:
                status, stdout, stderr = _pump(self.command(), quiet=quiet)
                result = "success" if status == 0 else _result_of(self.unit)
            finally:
                _end(self.unit)
        return Outcome(result, status, stdout, _plain(stderr))


def program_failure(task: AsVllm, outcome: Outcome) -> Failure:
    """Return the failure to report when only the end of the program is known."""
    error = f": {outcome.last_line}" if outcome.last_line else ""
    if outcome.result == "oom-kill":
        message = f"could not {task.purpose}: it needed more than {task.memory_max // 2**20} MiB of RAM"
        return Failure(message, hint="Stop a model (systemctl stop 'vllm@*') and run the same command again.")
    if outcome.result == "timeout":
        return Failure(f"could not {task.purpose}: it took longer than {task.time_limit} s{error}")
    return Failure(f"could not {task.purpose}{error or f' ({outcome.result}, status {outcome.status})'}")


def network_environment() -> dict[str, str]:
    """Return the variables that a download needs: the caller's proxy, and the system's certificates (including a company's own CA)."""
    withheld = withheld_proxies()
    proxies = {name: os.environ[name] for name in _PROXIES if name in os.environ and name not in withheld}
    bundle = "/etc/ssl/certs/ca-certificates.crt"
    return proxies | ({"SSL_CERT_FILE": bundle, "REQUESTS_CA_BUNDLE": bundle} if Path(bundle).exists() else {})


def withheld_proxies() -> tuple[str, ...]:
    """Return the variables whose proxy has a password. They are not passed on, since any user can read a service's environment."""
    return tuple(name for name in _PROXIES if "@" in os.environ.get(name, ""))


@contextlib.contextmanager
def lock_unit(unit: str, what: str) -> Iterator[None]:
    """Hold the lock of `unit` while the body runs. Raises Failure if another process has it, since `what` is then running already."""

    def refuse() -> None:
        raise Failure(f"{what} is running already", hint=f"Wait for it, or stop it with Ctrl-C where it runs. Its service is {unit}.")

    with run_lock.hold_lock(unit, refuse):
        yield


def _require_systemd_and_user() -> None:
    if os.geteuid() != 0:
        raise Failure("this needs root", hint="Run it with sudo.")
    if not Path("/run/systemd/system").is_dir():
        raise Failure(
            "systemd is not running here",
            hint="Programs run under its limits: boot the chroot or container, such as with systemd-nspawn --boot --directory=FOLDER.",
        )
    try:
        pwd.getpwnam(USER)
    except KeyError:
        raise Failure(f"the user {USER} does not exist", hint="The package creates it; to do so again, run: systemd-sysusers") from None


def _quoted(path: Path) -> str:
    """Quote a path as one word of a systemd list of paths."""
    return '"' + str(path).replace("\\", "\\\\").replace('"', '\\"') + '"'


def _end(unit: str) -> None:
    """Stop the service if it exists, and reset its failed state."""
    for verb in ("stop", "reset-failed"):
        subprocess.run(["systemctl", verb, f"{unit}.service"], check=False, capture_output=True)


def _result_of(unit: str) -> str:
    service = f"{unit}.service"
    values = show_properties([service], ("LoadState", "Result")).get(service, {})
    return values.get("Result", "") if values.get("LoadState") == "loaded" else "not-started"


@contextlib.contextmanager
def _ended_on_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP (a lost SSH connection) end the body as Ctrl-C does, so that the service is stopped too."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _pump(command: tuple[str, ...], *, quiet: bool) -> tuple[int, str, bytes]:
    """Run the command and copy its stderr to stderr as it arrives. Returns its status, its stdout and the tail of its stderr."""
    reading, writing = _channel(terminal=not quiet and sys.stderr.isatty())
    stdout, tail, terminal_filter = bytearray(), bytearray(), TerminalFilter()
    with os.fdopen(reading, "rb", buffering=0) as errors:
        try:
            # The child has its own process group: Ctrl-C reaches only this process, which then stops the service.
            child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=writing, process_group=0)
        finally:
            os.close(writing)
        with child, selectors.DefaultSelector() as selector:
            selector.register(child.stdout or errors, selectors.EVENT_READ, stdout)
            selector.register(errors, selectors.EVENT_READ, tail)
            try:
                while selector.get_map():
                    for key, _ in selector.select():
                        _copy(selector, key, terminal_filter if key.data is tail and not quiet else None)
                    del tail[:-TAIL], stdout[DATA:]
            except BaseException:
                child.terminate()
                raise
        return child.returncode, stdout.decode(errors="replace"), bytes(tail)


def _copy(selector: selectors.BaseSelector, key: selectors.SelectorKey, terminal_filter: TerminalFilter | None) -> None:
    try:
        data = os.read(key.fd, 65536)
    except OSError:  # EIO: the other side of the pseudoterminal is closed
        data = b""
    if not data:
        selector.unregister(key.fileobj)
    key.data.extend(data)
    if terminal_filter:
        with contextlib.suppress(OSError):  # if stderr is closed, the program continues without it
            sys.stderr.buffer.write(terminal_filter(data))
            sys.stderr.buffer.flush()


def _channel(*, terminal: bool) -> tuple[int, int]:
    """Open the reading and the writing side of the program's stderr: a raw pseudoterminal of the caller's size, or a pipe."""
    if not terminal:
        return os.pipe()
    reading, writing = os.openpty()
    mode = termios.tcgetattr(writing)
    mode[1] &= ~termios.OPOST
    termios.tcsetattr(writing, termios.TCSANOW, mode)
    termios.tcsetwinsize(writing, termios.tcgetwinsize(sys.stderr.fileno()))
    return reading, writing


def _plain(data: bytes) -> str:
    return ESCAPES.sub("", data.decode(errors="replace")).replace("\r", "\n")
