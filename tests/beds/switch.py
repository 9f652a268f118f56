"""A network switch for containers: a bridge in a network namespace of its own, with a cable to each. It goes with this process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.beds.machine import TIED, BedError
from tests.beds.nspawn import Nspawn

PORT = "lan0"  # the interface of a bed
NETWORK = "10.77.0"
_SLOW_CABLE = Path(__file__).with_name("slow_cable.py")
# Has an interface send frames as they are on a real cable: no larger than its MTU, and with their checksums.
_NO_OFFLOAD = """
import array, fcntl, socket, struct, sys
with socket.socket() as any_socket:
    for command in (0x17, 0x1f, 0x24, 0x2c, 0x19):  # ETHTOOL_STXCSUM, STSO, SGSO, SGRO, SSG of <linux/ethtool.h>
        off = array.array("B", struct.pack("II", command, 0))
        fcntl.ioctl(any_socket, 0x8946, struct.pack("16sP", sys.argv[1].encode(), off.buffer_info()[0]))
"""


class Switch:
    """A running switch. Beds are plugged in by number, which is also the last part of their address."""

    def __init__(self) -> None:
        self._holder = subprocess.Popen(
            [*TIED, "unshare", "--net", "sh", "-c", "echo ready && exec sleep infinity"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
        )
        self._slow: dict[int, subprocess.Popen[bytes]] = {}
        try:
            if self._holder.stdout:
                self._holder.stdout.readline()  # it is in its namespace now
            self._run("ip link add switch type bridge && ip link set switch up")
        except BaseException:
            self.stop()
            raise

    def __enter__(self) -> Self:
        """Return the running switch."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        """Take the switch down."""
        self.stop()

    def stop(self) -> None:
        """Take the switch and all its cables down. Can be called twice."""
        for process in (*self._slow.values(), self._holder):
            process.kill()
            process.wait()
        if self._holder.stdout:
            self._holder.stdout.close()

    def plug_in(self, bed: Nspawn, number: int) -> None:
        """Lay a cable to a bed, which gets the address NETWORK.number. The cable of a machine that went down with that number is gone."""
        self._run(
            f"ip link del port{number} 2> /dev/null || true; ip link add port{number} type veth peer name {PORT} netns {bed.leader} && "
            f"ip link set port{number} master switch && ip link set port{number} up"
        )
        bed.run(f"ip addr add {NETWORK}.{number}/24 dev {PORT} && ip link set {PORT} up")
        bed.run(["python3", "-c", _NO_OFFLOAD, PORT])

    def cut(self, number: int, *, off: bool = True) -> None:
        """Cut the cable to a bed, which sees nothing of that, or mend it."""
        self._run(f"ip link set port{number} {'nomaster' if off else 'master switch'}")

    def slow_down(self, number: int, delay: float, loss: float) -> None:
        """Replace the cable to a bed by a slow one. delay: seconds in each direction. loss: the share of frames that are lost."""
        self._run(
            f"ip link set port{number} nomaster && ip link add slow{number} type veth peer name near{number} && "
            f"ip link set slow{number} master switch && ip link set slow{number} up && ip link set near{number} up && "
            f"ip link set near{number} promisc on && ip link set port{number} promisc on"
        )
        command = [sys.executable, str(_SLOW_CABLE), f"port{number}", f"near{number}", str(delay), str(loss)]
        self._slow[number] = subprocess.Popen([*TIED, *self._inside(), *command], stdin=subprocess.DEVNULL)

    def speed_up(self, number: int) -> None:
        """Replace a slow cable by a usual one."""
        slow = self._slow.pop(number)
        slow.kill()
        slow.wait()
        self._run(f"ip link del slow{number} && ip link set port{number} promisc off && ip link set port{number} master switch")

    def _inside(self) -> list[str]:
        return ["nsenter", f"--target={self._holder.pid}", "--net"]

    def _run(self, command: str) -> None:
        done = subprocess.run(
            [*self._inside(), "sh", "-ec", command], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise BedError(f"`{command}` ended with {done.returncode}\n{done.stdout}{done.stderr}")
