"""Each hog in a model's place, in a real kernel: who is logged in stays so, who comes can log in, and nothing but the model ends."""

from __future__ import annotations

import os
import select
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.beds.vm import Saved, Virtual

pytestmark = pytest.mark.vm

KINDS = ("anonymous", "leak", "reader", "forkbomb", "mlock")
PROGRAM = Path("tests/bench/login/hog.py")
CONFIG = """
swap: {{size: 6G}}
models:
  hog:
    command: [/usr/bin/python3, /opt/hog.py, {kind}, '{ram}', '30']
    port: 8000
"""
GROUP = "/sys/fs/cgroup/vllm.slice/vllm@hog.service"
UNIT = "vllm@hog.service"
ALIVE = ("ssh.service", "systemd-journald.service", "innocent.service")
HOLD = 8.0  # seconds of pressing
PATIENCE = 120  # seconds: emulated, with a slow disk, and other tests beside it
Shell = subprocess.Popen[bytes]


@pytest.fixture(scope="module")
def bed(installed: Saved) -> Iterator[Virtual]:
    """1 GiB of RAM, 6 GiB of swap, and files that do not fit into the RAM, for the reader: none of them is in the cache."""
    with Virtual(saved=installed) as machine:
        machine.put(PROGRAM, "/opt/hog.py")
        configure(machine, KINDS[0])
        machine.run("vllm-safe swap create", timeout=300)
        write = "dd if=/dev/zero of=/srv/hog/$i bs=1M count=300 status=none"
        machine.run(f"mkdir /srv/hog && for i in 1 2 3 4; do {write} || exit; done", timeout=600)
        machine.run("sync && echo 3 > /proc/sys/vm/drop_caches", timeout=300)
        machine.run("systemd-run --unit=innocent sleep infinity")
        yield machine


@pytest.fixture(scope="module")
def shell(bed: Virtual) -> Iterator[Shell]:
    """Open a login shell before the first hog, which stays open until the last hog is gone."""
    pipe = subprocess.PIPE
    with subprocess.Popen(bed.ssh(), stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, bufsize=0) as process:
        try:
            assert answers(process, "good-morning")
            yield process
        finally:
            process.kill()


def configure(bed: Virtual, kind: str) -> None:
    ram = int(bed.out("awk '/MemTotal/ {print $2}' /proc/meminfo")) << 10
    bed.write("/etc/vllm-safe/config.yaml", CONFIG.format(kind=kind, ram=ram))


def answers(shell: Shell, word: str) -> bool:
    """Whether the shell repeats a word while a person would wait; what else it says, as a message of the day, does not count."""
    assert shell.stdin
    assert shell.stdout
    shell.stdin.write(f"echo {word}\n".encode())
    end, said = time.monotonic() + PATIENCE, b""
    while f"{word}\n".encode() not in said:
        ready, _, _ = select.select([shell.stdout], (), (), max(0.0, end - time.monotonic()))
        more = os.read(shell.stdout.fileno(), 4096) if ready else b""
        if not more:  # its end, or that of our patience
            return False
        said += more
    return True


def lives(bed: Virtual) -> str:
    return bed.out(["systemctl", "show", "--property=Id,ActiveState,MainPID,NRestarts", *ALIVE])


def presses(bed: Virtual) -> bool:
    ram, swap, most = map(int, bed.out(f"cd {GROUP} && cat memory.current memory.swap.current memory.max").split())
    return ram + swap > most * 9 // 10


def end(bed: Virtual) -> None:
    bed.run(f"systemctl kill -s KILL {UNIT}; systemctl stop {UNIT}", check=False, timeout=300)
    over = {"inactive", "failed"}
    bed.wait_for("the hog has gone", lambda: bed.properties(UNIT, "ActiveState")["ActiveState"] in over, timeout=PATIENCE, pause=1)
    bed.wait_for("all of it", lambda: not bed.exists(GROUP), timeout=PATIENCE, pause=1)
    bed.run("systemctl reset-failed", check=False)


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_a_model_does_everything_else_lives_on(bed: Virtual, shell: Shell, kind: str) -> None:
    before = lives(bed)
    assert before.count("ActiveState=active") == len(ALIVE), before
    configure(bed, kind)
    try:
        bed.run(f"systemctl start --no-block {UNIT}", timeout=PATIENCE)
        bed.wait_for("the hog presses", lambda: presses(bed), timeout=240, pause=1)
        bed.throttle(iops=150, bytes_per_second=120 << 20)  # only now: the start needs the disk, and is not measured
        over = time.monotonic() + HOLD
        groups = bed.out("pgrep -u vllm | sed 's|.*|/proc/&/cgroup|' | xargs cat 2>/dev/null | sort -u", timeout=PATIENCE)
        assert groups == f"0::/vllm.slice/{UNIT}"
        login = subprocess.run(bed.ssh("id", "-un"), check=True, capture_output=True, text=True, timeout=PATIENCE)
        assert login.stdout == "root\n"
        time.sleep(max(0.0, over - time.monotonic()))
        assert answers(shell, f"beside-{kind}")
        assert lives(bed) == before
    finally:
        bed.throttle()
        end(bed)
    assert answers(shell, f"after-{kind}")
    assert lives(bed) == before
