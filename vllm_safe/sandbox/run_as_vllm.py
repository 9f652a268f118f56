"""Run a program as user vllm: in vllm.slice, in a sandbox, under limits, its progress shown, ended when we end.

Everything that downloads code or models, or that opens what was downloaded, runs through here and never as root. systemd-run makes a
transient service (works on systemd 252 to 262) whose name is fixed, so that what a killed run left behind is found and ended by the next.

The program's stdout is data for us. Its stderr is shown as it comes, through a terminal of its own where ours is one: it draws its
progress, but never holds root's terminal, which it could read from.
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
from vllm_safe.common.terminal import ESCAPES
from vllm_safe.sandbox.terminal_filter import TerminalFilter

TAIL = 64 * 1024  # bytes of stderr that are kept to explain a failure
_PROXIES = tuple(name for word in ("http_proxy", "https_proxy", "all_proxy", "no_proxy") for name in (word, word.upper()))
DATA = 4 * 1024 * 1024  # bytes of stdout at most: the program is not trusted with our memory

# The sandbox: reads the system, writes only where it is told to, gains nothing, sees nobody's home. ProtectHome=tmpfs would do for the
# homes, but from systemd 257 on it keeps the mode of /root, and then what is named as `readable` below it cannot be reached.
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
    """How a program ended. `result` is systemd's: success, exit-code, signal, timeout, oom-kill ...; "not-started" if it never ran."""

    result: str
    status: int  # the program's exit status, or the number of the signal that ended it
    stdout: str
    stderr: str  # the last TAIL bytes, without terminal control sequences

    @property
    def ok(self) -> bool:
        """The program ended by itself with exit status 0."""
        return self.result == "success"

    @property
    def last_line(self) -> str:
        """The last line of stderr that says anything, or ""."""
        return next((line.strip() for line in reversed(self.stderr.splitlines()) if line.strip()), "")


@dataclass(frozen=True)
class AsVllm:
    """A step: run `argv` as user vllm.

    unit: the transient service's name, without ".service"; purpose: what it does, in the imperative, for people.
    env: variables, never secrets; credentials: name -> file that root reads, found below $CREDENTIALS_DIRECTORY.
    writable, readable: folders it may write, or read although they are in /home, /root or /run/user.
    memory_max, swap_max: bytes; time_limit: seconds. Without `network` it has none; without `devices` it sees no GPU.
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
        """Say what it does, and the program as a shell would take it."""
        return f"{self.purpose}, as user {USER}: {shlex.join(self.argv)}"

    def run(self) -> None:
        """Run it to its end. Raises Failure if it does not succeed."""
        outcome = self.outcome()
        if not outcome.ok:
            raise program_failure(self, outcome)

    def command(self) -> tuple[str, ...]:
        """Return the call of systemd-run."""
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
            *(["SupplementaryGroups=video"] if self.devices else []),  # whose the cards are in Debian, as in vllm@.service
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
        """Run it to its end and tell how it went; `quiet` shows nothing of it. Raises Failure where it cannot even be tried."""
        _require_systemd_and_user()
        with _ended_on_signals():
            _end(self.unit)  # of a run that was killed; who runs beside us is kept out by `alone`
            try:
                status, stdout, stderr = _pump(self.command(), quiet=quiet)
                result = "success" if status == 0 else _result_of(self.unit)
            finally:
                _end(self.unit)
        return Outcome(result, status, stdout, _plain(stderr))


def program_failure(task: AsVllm, outcome: Outcome) -> Failure:
    """Return the failure to report when nothing more is known than how the program ended."""
    said = f": {outcome.last_line}" if outcome.last_line else ""
    if outcome.result == "oom-kill":
        message = f"could not {task.purpose}: it needed more than {task.memory_max // 2**20} MiB of RAM"
        return Failure(message, hint="Stop a model (systemctl stop 'vllm@*') and run the same command again.")
    if outcome.result == "timeout":
        return Failure(f"could not {task.purpose}: it took longer than {task.time_limit} s{said}")
    return Failure(f"could not {task.purpose}{said or f' ({outcome.result}, status {outcome.status})'}")


def network_environment() -> dict[str, str]:
    """Return what a download needs of our own environment: the proxy, and the system's certificates (with a company's own CA)."""
    withheld = withheld_proxies()
    proxies = {name: os.environ[name] for name in _PROXIES if name in os.environ and name not in withheld}
    bundle = "/etc/ssl/certs/ca-certificates.crt"
    return proxies | ({"SSL_CERT_FILE": bundle, "REQUESTS_CA_BUNDLE": bundle} if Path(bundle).exists() else {})


def withheld_proxies() -> tuple[str, ...]:
    """Return the variables whose proxy has a password: everybody can read a service's environment, so they are not passed on."""
    return tuple(name for name in _PROXIES if "@" in os.environ.get(name, ""))


@contextlib.contextmanager
def lock_unit(unit: str, what: str) -> Iterator[None]:
    """Hold the lock of `unit` while the body runs. Raises Failure if another process has it: `what` is running already."""

    def refuse() -> None:
        raise Failure(f"{what} is running already", hint=f"Wait for it, or end it with Ctrl-C where it runs. Its service: {unit}.")

    with run_lock.hold_lock(unit, refuse):
        yield


def _require_systemd_and_user() -> None:
    if os.geteuid() != 0:
        raise Failure("this needs root", hint="Run it with sudo.")
    if not Path("/run/systemd/system").is_dir():
        raise Failure(
            "systemd does not run here",
            hint="Programs are run under its limits: boot the chroot or container, systemd-nspawn --boot --directory=FOLDER.",
        )
    try:
        pwd.getpwnam(USER)
    except KeyError:
        raise Failure(f"there is no user {USER}", hint="The package makes it; again: systemd-sysusers") from None


def _quoted(path: Path) -> str:
    """Quote a path as one word of a systemd list of paths."""
    return '"' + str(path).replace("\\", "\\\\").replace('"', '\\"') + '"'


def _end(unit: str) -> None:
    """Stop the service and forget it, if it is there."""
    for verb in ("stop", "reset-failed"):
        subprocess.run(["systemctl", verb, f"{unit}.service"], check=False, capture_output=True)


def _result_of(unit: str) -> str:
    service = f"{unit}.service"
    values = show_properties([service], ("LoadState", "Result")).get(service, {})
    return values.get("Result", "") if values.get("LoadState") == "loaded" else "not-started"


@contextlib.contextmanager
def _ended_on_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP (a lost ssh connection) end the body as Ctrl-C does, so that the service is stopped too."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _pump(command: tuple[str, ...], *, quiet: bool) -> tuple[int, str, bytes]:
    """Run the command; copy its stderr to ours as it comes. Returns its status, stdout and the tail of stderr."""
    ours, theirs = _channel(terminal=not quiet and sys.stderr.isatty())
    stdout, tail, tame = bytearray(), bytearray(), TerminalFilter()
    with os.fdopen(ours, "rb", buffering=0) as errors:
        try:
            # A process group of its own: Ctrl-C reaches us alone, and we stop the service.
            child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=theirs, process_group=0)
        finally:
            os.close(theirs)
        with child, selectors.DefaultSelector() as selector:
            selector.register(child.stdout or errors, selectors.EVENT_READ, stdout)
            selector.register(errors, selectors.EVENT_READ, tail)
            try:
                while selector.get_map():
                    for key, _ in selector.select():
                        _copy(selector, key, tame if key.data is tail and not quiet else None)
                    del tail[:-TAIL], stdout[DATA:]
            except BaseException:
                child.terminate()
                raise
        return child.returncode, stdout.decode(errors="replace"), bytes(tail)


def _copy(selector: selectors.BaseSelector, key: selectors.SelectorKey, tame: TerminalFilter | None) -> None:
    try:
        data = os.read(key.fd, 65536)
    except OSError:  # EIO: the other side of a terminal is closed
        data = b""
    if not data:
        selector.unregister(key.fileobj)
    key.data.extend(data)
    if tame:
        with contextlib.suppress(OSError):  # our own stderr is gone: go on, the work matters more
            sys.stderr.buffer.write(tame(data))
            sys.stderr.buffer.flush()


def _channel(*, terminal: bool) -> tuple[int, int]:
    """Our side and the program's side of its stderr: a terminal of our size, that changes nothing on the way, or a pipe."""
    if not terminal:
        return os.pipe()
    ours, theirs = os.openpty()
    mode = termios.tcgetattr(theirs)
    mode[1] &= ~termios.OPOST
    termios.tcsetattr(theirs, termios.TCSANOW, mode)
    termios.tcsetwinsize(theirs, termios.tcgetwinsize(sys.stderr.fileno()))
    return ours, theirs


def _plain(data: bytes) -> str:
    return ESCAPES.sub("", data.decode(errors="replace")).replace("\r", "\n")
