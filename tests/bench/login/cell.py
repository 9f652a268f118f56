"""One cell of the matrix: one hog on one machine, timed from inside and, by fresh ssh logins over the network, from outside."""

from __future__ import annotations

import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from tests.beds.machine import BedError
from tests.beds.vm import Virtual
from tests.bench.login.setups import GUEST, PROGRESS, Setup

AFTER = 15.0  # seconds after the hog's end in which logins are still timed
LONGEST = 120.0  # seconds; sshd's own LoginGraceTime
BYSTANDERS = ("ssh.service", "systemd-journald.service", "systemd-logind.service", "dbus.service", "cron.service", "bystander.service")


@dataclass(frozen=True)
class Cell:
    """Which one; `disk` in I/O operations a second."""

    setup: str
    hog: str
    disk: int
    round: int

    @property
    def file(self) -> str:
        """Its raw samples."""
        return f"{self.setup}.{self.hog}.{self.disk}.{self.round}.csv"


def measure(bed: Virtual, setup: Setup, cell: Cell, seconds: float, folder: Path) -> None:
    """Write the cell's file: lines `seconds since the hog's start,what,value`. It is there when it is whole."""
    bed.throttle(iops=cell.disk, bytes_per_second=120 << 20)
    ram = int(bed.out("awk '/MemTotal/ {print $2}' /proc/meminfo")) << 10
    inside = bed.share / "inside.csv"
    inside.unlink(missing_ok=True)
    bed.run("systemctl is-active bystander || systemd-run --quiet --unit=bystander sleep infinity", check=False)
    bed.run(f"systemctl start {' '.join(BYSTANDERS[:-1])}", check=False)  # whatever the last cell has killed
    setup.check(bed)
    ssh = bed.ssh("find", "--version")
    subprocess.run(ssh, check=True, capture_output=True, timeout=LONGEST)  # what one login has read, the next finds, in every set-up
    bed.run(f"setsid python3 {GUEST}/inside.py /bed/inside.csv {PROGRESS} </dev/null >/root/inside.log 2>&1 & echo $! >/run/inside.pid")
    before = _alive(bed)
    lines: list[tuple[float, str, float]] = []
    if setup.hog:  # its time begins when it begins, however long the start took
        setup.start(bed, cell.hog, ram, seconds)
        bed.wait_for("the hog runs", lambda: bed.exists(PROGRESS), timeout=120)
    start = time.time()
    _log_in(ssh, start, start + seconds, lines)
    lines.append((time.time() - start, "alive", float(_runs(bed, setup))))
    if setup.hog:
        setup.end(bed)
    end = time.time()
    lines.append((end - start, "end", 0.0))
    _log_in(ssh, start, end + AFTER, lines)
    _try(bed, "kill $(cat /run/inside.pid)")
    after = _alive(bed)
    lines.append((time.time() - start, "bystanders", float(sum(before[unit] != after.get(unit) for unit in before))))
    for row in inside.read_text().splitlines():
        at, what, value = row.split(",")
        lines.append((float(at) - start, what, float(value)))
    if setup.hog and not any(what == "progress" and value for _, what, value in lines):
        raise BedError(f"{cell.file}: the hog has done nothing")
    text = "".join(f"{at:.3f},{what},{value:g}\n" for at, what, value in sorted(lines))
    partial = folder / f".{cell.file}"
    partial.write_text(text)
    partial.rename(folder / cell.file)
    _tidy(bed, setup)


def _log_in(command: list[str], start: float, end: float, lines: list[tuple[float, str, float]]) -> None:
    """One fresh login after the other, a second apart where they are quicker."""
    while (begin := time.time()) < end:
        quiet = subprocess.DEVNULL
        try:
            good = subprocess.run(command, stdin=quiet, stdout=quiet, stderr=quiet, timeout=LONGEST, check=False).returncode == 0
        except subprocess.TimeoutExpired:
            good = False
        spent = time.time() - begin
        lines.append((begin - start, "ssh" if good else "failed ssh", spent))
        time.sleep(max(0.0, 1.0 - spent))


def _alive(bed: Virtual) -> dict[str, str]:
    """The run of each bystander that is up."""
    found = {}
    for unit in BYSTANDERS:
        shown = bed.properties(unit, "ActiveState", "InvocationID", "NRestarts")
        if shown["ActiveState"] == "active":
            found[unit] = f"{shown['InvocationID']} {shown['NRestarts']}"
    return found


def _runs(bed: Virtual, setup: Setup) -> bool:
    """Whether the hog's unit still runs, and was not started again."""
    shown = bed.properties(setup.unit, "SubState", "NRestarts")
    return shown["SubState"] in {"running", "start"} and shown.get("NRestarts", "0") == "0"


def _tidy(bed: Virtual, setup: Setup) -> None:
    """Leave nothing of the hog to the next cell: no process, no count, nothing swapped out. Raises BedError where that fails."""
    bed.throttle()
    _try(bed, "swapoff -a; swapon -a; swapon /swapfile")
    if setup.hog:
        setup.wait_gone(bed)


def _try(bed: Virtual, command: str) -> None:
    """A command that may take as long as the machine is slow."""
    try:
        bed.run(command, check=False, timeout=300)
    except BedError as error:
        print(f"  {error}", flush=True)
