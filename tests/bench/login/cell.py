"""One cell of the matrix: one hog on one machine, timed from inside, and from outside by new ssh logins over the network."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.beds.machine import BedError
from tests.beds.vm import Virtual
from tests.bench.login.setups import GUEST, PROGRESS, Setup

AFTER = 15.0  # seconds after the hog's end in which logins are still timed
PATIENCE = 60.0  # seconds for the machine to obey the command to end the hog; after that, a person would drive over and press the button
LONGEST = 120.0  # seconds; sshd's own LoginGraceTime
BYSTANDERS = ("ssh.service", "systemd-journald.service", "systemd-logind.service", "dbus.service", "cron.service", "bystander.service")


@dataclass(frozen=True)
class Cell:
    """The parameters of a cell. `disk` is in I/O operations a second."""

    setup: str
    hog: str
    disk: int
    round: int

    @property
    def name(self) -> str:
        """How it is called in files."""
        return f"{self.setup}.{self.hog}.{self.disk}.{self.round}"

    @property
    def file(self) -> str:
        """The name of the file with the cell's raw samples."""
        return f"{self.name}.csv"


def measure(bed: Virtual, setup: Setup, cell: Cell, seconds: float, folder: Path) -> None:
    """Measure a cell and write its file, with lines `seconds since the hog's start,what,value`. It exists once it is complete.

    Raises BedError where the machine cannot be used any more. If the hog caused that, it is a result, and in the file.
    """
    bed.throttle(iops=cell.disk, bytes_per_second=120 << 20)
    ram = int(bed.out("awk '/MemTotal/ {print $2}' /proc/meminfo")) << 10
    inside = bed.share / "inside.csv"
    inside.unlink(missing_ok=True)
    bed.run("systemctl is-active bystander || systemd-run --quiet --unit=bystander sleep infinity", check=False)
    bed.run(f"systemctl start {' '.join(BYSTANDERS[:-1])}", check=False)  # restart those that the last cell has killed
    setup.check(bed)
    ssh = bed.ssh("find", "--version")
    subprocess.run(ssh, check=True, capture_output=True, timeout=LONGEST)  # caches the files that every login reads, in every set-up
    bed.run(f"setsid python3 {GUEST}/inside.py /bed/inside.csv {PROGRESS} </dev/null >/root/inside.log 2>&1 & echo $! >/run/inside.pid")
    before = _alive(bed)
    lines: list[tuple[float, str, float]] = []
    if setup.hog:  # the hog's time begins when it runs, however long its start took
        setup.start(bed, cell.hog, ram, seconds)
        bed.wait_for("the hog runs", lambda: bed.exists(PROGRESS), timeout=120)
    start = time.time()
    end = start + seconds
    _log_in(ssh, start, lambda: time.time() < end, end + PATIENCE, lines)
    end = time.time()
    lines.append((end - start, "end", 0.0))
    stuck = None
    with ThreadPoolExecutor(1) as pool:  # logins continue meanwhile
        ended = pool.submit(setup.end, bed, PATIENCE) if setup.hog else pool.submit(bool)
        _log_in(ssh, start, lambda: time.time() < end + AFTER or not ended.done(), end + PATIENCE, lines)
    try:
        lines.append((end - start, "alive", float(ended.result())))
        bed.run("kill $(cat /run/inside.pid)", check=False)
        after = _alive(bed)
        lines.append((time.time() - start, "bystanders", float(sum(before[unit] != after.get(unit) for unit in before))))
    except BedError as error:
        stuck = error
    for row in inside.read_text().splitlines():
        at, what, value = row.split(",")
        lines.append((float(at) - start, what, float(value)))
    if setup.hog and not any(what == "progress" and value for _, what, value in lines):
        raise BedError(f"{cell.file}: the hog has done nothing")
    text = "".join(f"{at:.3f},{what},{value:g}\n" for at, what, value in sorted(lines))
    partial = folder / f".{cell.file}"
    partial.write_text(text)
    partial.rename(folder / cell.file)
    if stuck:
        raise stuck
    _tidy(bed, setup)


def _log_in(command: list[str], start: float, on: Callable[[], bool], last: float, lines: list[tuple[float, str, float]]) -> None:
    """Log in again and again, at least a second apart, as long as `on()` is true. No login lasts beyond `last`."""
    while on() and (begin := time.time()) < last:
        quiet, longest = subprocess.DEVNULL, min(LONGEST, last - begin)
        try:
            good = subprocess.run(command, stdin=quiet, stdout=quiet, stderr=quiet, timeout=longest, check=False).returncode == 0
        except subprocess.TimeoutExpired:
            good = False
        spent = time.time() - begin
        lines.append((begin - start, "ssh" if good else "failed ssh", spent))
        time.sleep(max(0.0, 1.0 - spent))


def _alive(bed: Virtual) -> dict[str, str]:
    """Return the invocation of each bystander that is running."""
    found = {}
    for unit in BYSTANDERS:
        shown = bed.properties(unit, "ActiveState", "InvocationID", "NRestarts")
        if shown["ActiveState"] == "active":
            found[unit] = f"{shown['InvocationID']} {shown['NRestarts']}"
    return found


def _tidy(bed: Virtual, setup: Setup) -> None:
    """Remove everything of the hog before the next cell: processes, counts, swapped-out pages. Raises BedError where that fails."""
    bed.throttle()
    bed.run("swapoff -a; swapon -a; swapon /swapfile", check=False, timeout=300)
    if setup.hog:
        setup.wait_gone(bed)
