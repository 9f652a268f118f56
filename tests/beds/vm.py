"""An emulated machine (QEMU) with its own kernel, so limits, swap, PSI, power cuts and a slow disk are real. KVM is used where it works.

Commands go to the QEMU guest agent over a virtio-serial port, never over the guest's network: the agent is a small process that runs all
the time, is never killed for memory, and needs neither a login nor a free port. In a guest that thrashes it answers late, but it answers;
the program that it starts is as slow as any other. What a *person* would experience is measured with `ssh()`, a new login over the network.
"""

from __future__ import annotations

import base64
import re
import shutil
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self, cast

from tests.beds import cache, trees
from tests.beds.accelerator import EMULATED, accelerator
from tests.beds.image import image
from tests.beds.machine import ENVIRONMENT, TIED, BedError, Completed, Machine
from tests.beds.wire import Wire, WireError

KIND = "vm"
DISK = "disk"
SOCKETS = ("monitor", "agent")
# Before a command on the host: three times the share of others, who have a session, and so an autogroup, of their own; without autogroups,
# by the nice value.
URGENT = ("sh", "-c", 'echo -5 2>/dev/null >/proc/self/autogroup; exec nice -n -5 "$@"', "urgent")
RESET_SCORE = 'echo 0 > /proc/self/oom_score_adj && cd /root && exec "$@"'  # programs that the agent starts do not get its own -1000


@dataclass(frozen=True)
class Shape:
    """The hardware of the machine. `memory` is in MiB, `disk` in truncate's format; `kernel_arguments` are added to the command line.

    cpus: one for tests, since of two emulated ones, one spins for the other. The drill and benchmarks have two, as our users do.
    """

    memory: int = 1024
    cpus: int = 1
    disk: str = "12G"
    kernel_arguments: str = ""
    recipe: trees.Recipe = trees.VIRTUAL


class Saved(NamedTuple):
    """A running machine as `save()` stored it. Any number of machines continue from it, which takes seconds instead of a boot."""

    disk: Path
    state: Path

    @classmethod
    def at(cls, folder: Path) -> Self:
        """Name the files of a saved machine that is or will be in `folder`."""
        return cls(folder / DISK, folder / "state")


def run_folder() -> cache.RunFolder:
    """Make a folder for what a machine keeps while its owner lives; those of dead owners go first."""
    return cache.RunFolder(KIND, root=cache.fast_root())


def sweep() -> None:
    """Remove what machines whose owner was killed have left, in memory and, from when there was less of it, on the disk."""
    for root in {cache.ROOT, cache.fast_root()}:
        cache.RunFolder(KIND, root=root).remove()


class Running(NamedTuple):
    """The QEMU process of a machine that is on, and its two sockets."""

    process: subprocess.Popen[bytes]
    monitor: Wire
    agent: Wire


class Virtual(Machine):
    """A running machine with its own disk, which survives `reboot()` and `power_cut()` + `boot()`; `stop()` removes it."""

    def __init__(self, shape: Shape = Shape(), *, disk: Path | None = None, saved: Saved | None = None, urgent: bool = False) -> None:
        """Boot, from a copy of `disk` if that of another machine is given, or go on from `saved`, whose shape is then the same.

        urgent: it has three times the share of the host's processors that others have; for tests that judge by how quick it is.
        Raises BedError with the console's words.
        """
        self.shape = shape
        self._urgent = urgent
        self._image = image(shape.recipe, shape.disk)
        self._accelerator = accelerator(self._image.kernel)
        self._folder = run_folder()
        self._on: Running | None = None
        self.share = self._folder.path / "share"  # mounted at /bed in the guest
        try:
            self.share.mkdir()
            source = saved.disk if saved else disk or self._image.disk
            subprocess.run(["cp", "--sparse=always", "--reflink=auto", source, self.disk], check=True)
            self.boot(saved and saved.state)
        except BaseException:
            self.stop()
            raise

    @property
    def disk(self) -> Path:
        """The machine's disk, to be copied while the machine is off."""
        return self._folder.path / DISK

    @property
    def emulated(self) -> bool:
        """Whether the CPU is emulated: everything takes 10 to 20 times as long."""
        return self._accelerator == EMULATED

    @property
    def patience(self) -> float:
        """The limits suit the emulated machine beside one other. The host may be slower than those they were set on, or busier."""
        return 2.0 if self.emulated else 1.0

    def boot(self, state: Path | None = None) -> None:
        """Switch the machine on, with the memory saved in `state` if given, and wait until systemd has started everything."""
        run = self._folder.path
        arguments = f"root=/dev/vda rw console=ttyS0 net.ifnames=0 panic=-1 systemd.show_status=0 {self.shape.kernel_arguments}"
        if self.emulated:
            # QEMU translates a program anew for each address at which it runs: without this, a command takes twice as long.
            arguments += " norandmaps"
        command = [
            *(*TIED, *(URGENT if self._urgent else ())),
            *("qemu-system-x86_64", *self._accelerator, "-m", str(self.shape.memory), "-smp", str(self.shape.cpus)),
            *("-nodefaults", "-display", "none", "-no-reboot", "-serial", f"file:{run}/console"),
            *("-kernel", str(self._image.kernel), "-initrd", str(self._image.initrd), "-append", arguments.strip()),
            # Flushes need not reach the host's disk, since a power cut here kills QEMU, not the host.
            *("-drive", f"if=none,id={DISK},file={self.disk},format=raw,cache=unsafe,discard=unmap"),
            # One queue of 32, as a hard disk has (NCQ): Debian gives it mq-deadline, but no scheduler to a disk with more queues.
            *("-device", f"virtio-blk-pci,drive={DISK},id=vda,serial=bed,num-queues=1,queue-size=32"),
            *("-netdev", "user,id=net,hostfwd=tcp:127.0.0.1:0-:22", "-device", "virtio-net-pci,netdev=net,romfile="),
            *("-virtfs", f"local,path={self.share},mount_tag=bed,security_model=none"),
            *("-device", "virtio-rng-pci", "-device", "virtio-serial-pci"),
            *("-chardev", f"socket,id=agent,path={run}/agent,server=on,wait=off"),
            *("-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0"),
            *("-qmp", f"unix:{run}/monitor,server=on,wait=off"),
            *(("-incoming", f"exec:cat {state}") if state else ()),
        ]
        with (run / "qemu").open("wb") as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        try:
            self.wait_for("QEMU listens", lambda: process.poll() is not None or all((run / name).exists() for name in SOCKETS))
            self._on = Running(process, Wire(run / "monitor"), Wire(run / "agent", agent=True))
        except (BedError, OSError) as error:
            process.kill()
            process.wait()
            raise BedError(f"QEMU did not start: {error}\n{(run / 'qemu').read_text(errors='replace')}") from None
        self._on.monitor.call("qmp_capabilities")
        self.wait_for("the guest's agent answers", self._answers, timeout=300)
        self.wait_for("systemd in the guest has started everything", self._booted, timeout=300, pause=1)
        if state:
            self.run(["date", "--set", f"@{time.time():.3f}"])  # its clock did not run meanwhile

    def save(self, folder: Path) -> Saved:
        """Stop here for good, and leave in `folder` what other machines may go on from: the disk, and last, and whole, the state."""
        saved = Saved.at(folder)
        partial = folder / "state.partial"
        self.run("! mountpoint -q /bed || umount /bed")  # QEMU saves no machine that shares a folder
        self.run("sync; echo 3 > /proc/sys/vm/drop_caches")
        self._running.monitor.call("migrate", {"uri": f"exec:cat > {partial}"})  # and stops
        self.wait_for("its memory is saved", lambda: self._migration() == "completed", timeout=120)
        self.power_cut()
        subprocess.run(["mv", self.disk, saved.disk], check=True)  # which may be on another file system, and keeps holes
        partial.rename(saved.state)
        return saved

    def _migration(self) -> str:
        return str(cast("dict[str, object]", self._running.monitor.call("query-migrate")).get("status"))

    @property
    def _running(self) -> Running:
        if self._on is None or self._on.process.poll() is not None:
            raise BedError(f"the machine is off\n{self.console()}")
        return self._on

    def _answers(self) -> bool:
        with suppress(WireError):
            self._running.agent.call("guest-ping", timeout=2)
            return True
        return False

    def _booted(self) -> bool:
        # One question that waits: each costs an emulated processor a good part of a second.
        return self.run(["systemctl", "is-system-running", "--wait"], check=False).stdout.strip() in {"running", "degraded"}

    def _execute(self, command: Sequence[str], stdin: str, timeout: float) -> Completed:
        end = time.monotonic() + timeout
        agent = self._running.agent
        try:
            question = {
                "path": "/usr/bin/setsid",  # for a process group that can be killed when the time is over
                "arg": ["/bin/sh", "-c", RESET_SCORE, "bed", *command],
                "env": [f"{name}={value}" for name, value in ENVIRONMENT.items()],
                "input-data": base64.b64encode(stdin.encode()).decode(),
                "capture-output": True,
            }
            started = agent.call("guest-exec", question, timeout=timeout)
            pid = cast("dict[str, int]", started)["pid"]
            pause = 0.05
            while True:
                if time.monotonic() > end:
                    agent.call("guest-exec", {"path": "/bin/kill", "arg": ["-KILL", "--", f"-{pid}"]})
                    raise subprocess.TimeoutExpired(list(command), timeout)
                status = cast("dict[str, str | int]", agent.call("guest-exec-status", {"pid": pid}, timeout=timeout))
                if status["exited"]:
                    break
                time.sleep(pause)
                pause = min(pause * 1.5, 0.25)
        except WireError as error:
            _ = self._running  # raises BedError if the machine is off, not slow
            raise subprocess.TimeoutExpired(list(command), timeout, output=f"{error}\n") from None
        code = int(status["exitcode"]) if "exitcode" in status else -int(status.get("signal", 9))
        out, err = (base64.b64decode(str(status.get(name, ""))).decode(errors="replace") for name in ("out-data", "err-data"))
        return subprocess.CompletedProcess(command, code, out, err)

    def put(self, source: Path, target: str) -> None:
        """Copy a file of the host into the bed, through the shared folder."""
        passing = self.share / f".{source.name}"
        shutil.copy(source, passing)
        self.run(["cp", "--no-preserve=mode", f"/bed/{passing.name}", target])
        passing.unlink()

    def ssh(self, *command: str) -> list[str]:
        """Return the command line, for this host, of a new login as root that runs `command`, as a person would log in."""
        forwards = str(self._running.monitor.call("human-monitor-command", {"command-line": "info usernet"}))
        port = re.search(r"HOST_FORWARD\]\s+\d+\s+127\.0\.0\.1\s+(\d+)", forwards)
        if port is None:
            raise BedError(f"no port is forwarded:\n{forwards}")
        options = ("BatchMode=yes", "StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR", "IdentitiesOnly=yes")
        flags = [flag for option in options for flag in ("-o", option)]
        return ["ssh", "-F", "none", "-i", str(self._image.key), "-p", port[1], *flags, "root@127.0.0.1", *command]

    def throttle(self, *, iops: int = 0, bytes_per_second: int = 0) -> None:
        """Limit the disk from now on; 0 removes the limit. A hard disk has 150 IOPS and 120 MiB/s."""
        single = dict.fromkeys(("bps_rd", "bps_wr", "iops_rd", "iops_wr"), 0)
        self._running.monitor.call("block_set_io_throttle", {"device": DISK, "bps": bytes_per_second, "iops": iops, **single})

    def suspend(self, seconds: float) -> None:
        """Suspend the machine to memory and wake it up `seconds` after it has gone to sleep.

        QEMU wakes it, not an alarm of the guest's clock: on a busy host the alarm can be over before the guest sleeps.
        """
        self.run("systemd-run --quiet --collect sh -c 'echo mem > /sys/power/state'")
        self.wait_for("the machine sleeps", lambda: self._status() == "suspended", timeout=120)
        time.sleep(seconds)
        self._running.monitor.call("system_wakeup")

    def _status(self) -> str:
        return str(cast("dict[str, object]", self._running.monitor.call("query-status"))["status"])

    def power_cut(self) -> None:
        """Switch the machine off at once. What it had not written to the disk is lost. `boot()` starts it again."""
        if self._on is not None:
            self._on.process.kill()
            self._off(self._on)

    def reboot(self) -> None:
        """Shut down in order and start again."""
        self.shut_down()
        self.boot()

    def shut_down(self) -> None:
        """Shut down in order, with everything written to the disk."""
        running = self._running
        with suppress(WireError):
            running.agent.call("guest-shutdown", {"mode": "powerdown"}, timeout=2)  # this command has no answer
        running.process.wait(timeout=300)
        self._off(running)

    def _off(self, running: Running) -> None:
        running.process.wait()
        running.monitor.close()
        running.agent.close()
        for name in SOCKETS:
            (self._folder.path / name).unlink(missing_ok=True)
        self._on = None

    def console(self) -> str:
        """Return the end of the text on the machine's serial console."""
        with suppress(OSError):
            return (self._folder.path / "console").read_text(errors="replace")[-4000:]
        return ""

    def stop(self) -> None:
        """Switch the machine off at once and remove its disk. Can be called twice."""
        self.power_cut()
        self._folder.remove()
