"""A container with systemd as PID 1, booted in a second on an overlay of a cached tree: real units and apt, at full speed.

Everything runs below one `unshare` that owns a PID and a mount namespace, and that the kernel kills with this process. When this process
ends, in whatever way, the container, its mounts and its network are gone. Only a folder in the cache stays, which the next bed removes.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from subprocess import PIPE
from typing import NamedTuple

from tests.beds import cache, trees
from tests.beds.machine import ENVIRONMENT, TIED, BedError, Completed, Machine

KIND = "nspawn"
CGROUPS = tuple(Path("/sys/fs/cgroup", name) for name in ("unified", "systemd", ""))
AUTHORITIES = "etc/ssl/certs/ca-certificates.crt"  # the host's authorities, since downloads may pass a proxy with an authority of its own
# Where no systemd assigns cgroups, each bed needs its own: nspawn always calls its cgroup `payload`, and two beds would share it.
CGROUP = """
for mount in /sys/fs/cgroup/unified /sys/fs/cgroup/systemd /sys/fs/cgroup; do
    [ -e $mount/cgroup.procs ] || continue
    mkdir $mount/$0 && echo $$ > $mount/$0/cgroup.procs || exit
done
exec "$@"
"""
# `volatile` skips fsync: nobody reads the upper folder after the bed is gone.
MOUNT = 'mount -t overlay overlay -o "$0" . && shift && exec systemd-nspawn "$@"'
# Commands join a cgroup of the container, as the processes of a login do.
JOIN = 'mkdir -p /sys/fs/cgroup/bed && echo $$ > /sys/fs/cgroup/bed/cgroup.procs && cd /root && exec "$@"'


class Bind(NamedTuple):
    """A folder of the host that is mounted at `target` in the bed."""

    source: Path
    target: str
    writable: bool = False


class Nspawn(Machine):
    """A running container. `network` adds network access through user-mode NAT; each bed has its own ports in any case.

    leader: the container's PID 1, as the host sees it.
    """

    def __init__(
        self, recipe: trees.Recipe = trees.CONTAINER, *, binds: Sequence[Bind] = (), layers: Sequence[Path] = (), network: bool = True
    ) -> None:
        """Boot, and wait until systemd has started everything. Raises BedError with the text of the console.

        layers: trees of further files, above the recipe's. The bed may change and remove the files, since its writes go elsewhere.
        """
        lower = [*layers, trees.tree(recipe)]
        self._folder = cache.RunFolder(KIND, sweep=_remove_cgroups)
        self._processes: list[subprocess.Popen[bytes]] = []
        self.leader = 0
        try:
            self._boot(lower, binds)
            if network:
                self._connect()
        except BaseException:
            self.stop()
            raise

    @property
    def written(self) -> Path:
        """The folder of the host with everything that the bed has written, at the paths of the bed."""
        return self._folder.path / "upper"

    def _boot(self, lower: Sequence[Path], binds: Sequence[Bind]) -> None:
        upper, work, root = self.written, self._folder.path / "work", self._folder.path / "root"
        for folder in (upper / "etc/ssl/certs", work, root):
            folder.mkdir(parents=True)
        (upper / "etc").chmod(0o755)
        (upper / "etc/resolv.conf").write_text("nameserver 10.0.2.3\n")  # slirp4netns's own name server, which asks that of the host
        if Path("/", AUTHORITIES).exists():
            shutil.copy(Path("/", AUTHORITIES), upper / AUTHORITIES)
        options = f"lowerdir={':'.join(map(str, lower))},upperdir={upper},workdir={work},volatile"
        own_cgroup = ["systemd-run", "--scope", "--quiet", "--property=Delegate=yes"]
        if not Path("/run/systemd/system").exists():
            own_cgroup = ["sh", "-c", CGROUP, f"vllm-safe-{self._folder.path.name}"]
        command = [
            *own_cgroup,
            *TIED,
            *("unshare", "--mount", "--propagation", "private", "--pid", "--mount-proc", "--fork", "--kill-child=KILL"),
            *("sh", "-c", MOUNT, options, "nspawn"),
            *("--boot", f"--directory={root}", "--register=no", "--keep-unit", "--console=read-only", "--machine=bed"),
            *("--private-network", "--resolv-conf=off", "--link-journal=no", "--timezone=off", "--quiet"),
            *(f"--bind{'' if bind.writable else '-ro'}={bind.source}:{bind.target}" for bind in binds),
        ]
        with (self._folder.path / "console").open("wb") as console:
            self._processes.append(
                subprocess.Popen(
                    command,
                    cwd=root,
                    env={**os.environ, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"},
                    stdin=subprocess.DEVNULL,
                    stdout=console,
                    stderr=console,
                    start_new_session=True,  # so that Ctrl-C reaches only this process, which takes the bed down in order
                )
            )
        self.leader = self._find_leader()
        self.wait_for("systemd in the container has started everything", self._booted)

    def _find_leader(self) -> int:
        """Return PID 1 of the container as the host sees it: this process -> nspawn -> systemd, each the only child."""
        end = time.monotonic() + 30
        while time.monotonic() < end and self._processes[0].poll() is None:
            with suppress(OSError, ValueError):
                (nspawn,) = _children(self._processes[0].pid)
                for leader in _children(nspawn):
                    if Path(f"/proc/{leader}/comm").read_text() == "systemd\n":
                        return leader
            time.sleep(0.05)
        raise BedError(f"the container did not start:\n{self.console()}")

    def _booted(self) -> bool:
        if self._processes[0].poll() is not None:
            raise BedError(f"the container went down:\n{self.console()}")
        return self.run(["systemctl", "is-system-running"], check=False).stdout.strip() in {"running", "degraded"}

    def _connect(self) -> None:
        ready, write_end = os.pipe()
        try:
            command = [*TIED, "slirp4netns", "--configure", "--mtu=65520", "--disable-host-loopback"]
            with (self._folder.path / "network").open("wb") as log:
                self._processes.append(
                    subprocess.Popen(
                        [*command, f"--ready-fd={write_end}", str(self.leader), "tap0"],
                        pass_fds=(write_end,),
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                        start_new_session=True,
                    )
                )
            os.close(write_end)
            if os.read(ready, 1) != b"1":
                raise BedError(f"no network: {(self._folder.path / 'network').read_text(errors='replace')}")
        finally:
            os.close(ready)

    def _execute(self, command: Sequence[str], stdin: str, timeout: float) -> Completed:
        with subprocess.Popen(self.argv(command), text=True, errors="replace", stdin=PIPE, stdout=PIPE, stderr=PIPE) as process:
            try:
                out, err = process.communicate(stdin, timeout=timeout)
            except BaseException:
                for pid in (process.pid, *_below(process.pid)):  # what nsenter has started would go on in the container
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                raise
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    def argv(self, command: Sequence[str]) -> list[str]:
        """Return the command line with which the host runs a command in the bed."""
        environment = ["env", "-i", *(f"{name}={value}" for name, value in ENVIRONMENT.items())]
        return ["nsenter", f"--target={self.leader}", "--all", "--wd", *environment, "sh", "-c", JOIN, "bed", *command]

    def freeze(self, *, off: bool = False) -> None:
        """Stop all processes of the container by its cgroup, or let them go on: its network stays, and nothing answers."""
        (path,) = re.findall(r"^0::(.*)/init\.scope$", Path(f"/proc/{self.leader}/cgroup").read_text(), re.MULTILINE)
        mount = next(mount for mount in CGROUPS if (mount / "cgroup.controllers").exists())
        Path(f"{mount}{path}/cgroup.freeze").write_text("0" if off else "1")

    def put(self, source: Path, target: str) -> None:
        """Copy a file of the host into the bed."""
        with source.open("rb") as file:
            subprocess.run(self.argv(["sh", "-c", 'cat > "$0"', target]), stdin=file, check=True)

    def console(self) -> str:
        """Return the text that systemd wrote on the console."""
        return (self._folder.path / "console").read_text(errors="replace")[-4000:]

    def stop(self) -> None:
        """Kill the container at once and remove what it left. Can be called twice."""
        if self.leader and self._processes[0].poll() is None:
            # From below: whoever waits for a process takes over its processor time, for tests.tiers to count.
            with suppress(ProcessLookupError):
                os.kill(self.leader, signal.SIGKILL)
            with suppress(subprocess.TimeoutExpired):
                self._processes[0].wait(timeout=5)
            self.leader = 0
        for process in reversed(self._processes):
            process.kill()
            process.wait()
        _remove_cgroups(self._folder.path.name)
        self._folder.remove()


def sweep() -> None:
    """Remove what containers whose owner was killed have left."""
    cache.RunFolder(KIND, sweep=_remove_cgroups).remove()


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _below(pid: int) -> list[int]:
    """Return the living descendants of a process, each after its parent."""
    try:
        return [each for child in _children(pid) for each in (child, *_below(child))]
    except OSError:  # it has just ended
        return []


def _remove_cgroups(name: str) -> None:
    """Remove the cgroups of a bed, although the kernel may still be ending its last processes."""
    for mount in CGROUPS:
        top = mount / f"vllm-safe-{name}"
        end = time.monotonic() + 5
        while top.exists() and time.monotonic() < end:
            for folder, _, _ in os.walk(top, topdown=False):
                with suppress(OSError):
                    Path(folder).rmdir()
            time.sleep(0.02)
