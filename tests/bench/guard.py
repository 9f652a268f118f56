"""The guard: its memory, how often it wakes up when idle, and how soon after its threshold it acts. It runs in a VM, where PSI is real."""

from __future__ import annotations

import json
from pathlib import Path

from tests.beds.vm import Shape, Virtual
from tests.bench.row import Row

QUIET = 60  # seconds
SETTLE = 40  # seconds until the guard has handled the pressure of the start itself
SWITCHES = "voluntary_ctxt_switches"
EARLY = 0.3  # seconds by which the guard may seem to act too early: the sampler's interval, and the sampler's own stalls
SHARE, SPAN = 0.05, 2.0  # squeeze_pressure and squeeze_after
CONFIG = """
swap: {size: none}
guard: {squeeze_pressure: 5%, squeeze_after: 2s}
models:
  bench:
    command: [/usr/bin/python3, /opt/reader.py, '8000']
    health: http://127.0.0.1:8000/
"""
# A model that reads a large file and drops it from the cache, for ever: it moves pages, and nobody waits for it.
READER = """
import http.server, os, sys, threading

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()

def read():
    file = os.open("/var/cache/large", os.O_RDONLY)
    while True:
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        for offset in range(0, 256 << 20, 1 << 20):
            os.pread(file, 1 << 20, offset)

threading.Thread(target=read, daemon=True).start()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
VICTIM = Path("tests/fakes/victim.py")
# Prints when the stall of the last two seconds first reaches the threshold, as precisely as can be measured outside of the guard.
CROSSING = f"""
import collections, os, time
files = [os.open(f"/sys/fs/cgroup/system.slice/{{name}}.pressure", os.O_RDONLY) for name in ("memory", "io")]
past = collections.deque()
end = time.monotonic() + 120
while time.monotonic() < end:
    now = time.monotonic()
    totals = [int(os.pread(file, 4096, 0).decode().splitlines()[1].rpartition("=")[2]) / 1e6 for file in files]
    past.append((now, totals))
    while past[0][0] < now - {SPAN}:
        past.popleft()
    if max(new - old for new, old in zip(totals, past[0][1])) >= {SHARE * SPAN}:
        print(time.time())
        break
    time.sleep(0.02)
"""


def measure(deb: Path) -> list[Row]:
    """Measure the guard in a machine of its own."""
    with Virtual(Shape(cpus=2)) as bed:
        bed.install(deb)
        for name, text in {"reader.py": READER, "crossing.py": CROSSING}.items():
            bed.write(f"/opt/{name}", text)
        bed.put(VICTIM, "/opt/victim.py")
        bed.write("/etc/vllm-safe/config.yaml", CONFIG)
        bed.run("fallocate -l 1G /swapfile && chmod 600 /swapfile && mkswap /swapfile && swapon /swapfile")
        bed.run("head -c 256M /dev/urandom > /var/cache/large", timeout=200)
        bed.run("systemctl start vllm@bench", timeout=300)
        bed.throttle(iops=150, bytes_per_second=120 << 20)
        pid = bed.properties("vllm-safe-guard.service", "MainPID")["MainPID"]
        before, after = _statuses(bed, pid)
        reaction = _reaction(bed)
    beside = "emulated CPU" if bed.emulated else "KVM"
    return [
        Row("guard, resident", after["VmRSS"] / 1024, 12, "MiB", "while a model runs"),
        Row("guard, wake-ups while quiet", (after[SWITCHES] - before[SWITCHES]) / QUIET, 0.2, "1/s", f"over {QUIET} s"),
        Row("guard, from threshold to act", reaction, 1, "s", f"{beside}, disk at 150 IOPS"),
    ]


def _statuses(bed: Virtual, pid: str) -> list[dict[str, int]]:
    """Read /proc/PID/status twice.

    One shell does it without starting a program in between: on this disk, a start would cause the pressure that the guard looks for.
    """
    show = "while read -r line; do echo $line; done < /proc/$1/status"
    script = f"{show}; echo; read -t {QUIET} nothing <> /run/never; {show}"
    text = bed.out(["bash", "-c", f"mkfifo /run/never; sleep {SETTLE}; {script}", "bash", pid], timeout=QUIET + SETTLE + 60)
    lines = [[line.split() for line in part.splitlines()] for part in text.split("\n\n")]
    return [{words[0].rstrip(":"): int(words[1]) for words in part if len(words) > 1 and words[1].isdecimal()} for part in lines]


def _reaction(bed: Virtual) -> float:
    """Return the reaction time in seconds.

    It is slightly below 0 if the guard acted before the sampler saw the threshold, and infinite if it acted long before.
    """
    events = "/run/vllm-safe/guard/bench.jsonl"
    bed.run(f"rm -f {events}; systemd-run --unit=crossing -p StandardOutput=file:/run/crossing python3 /opt/crossing.py; sleep 2")
    bed.run("systemd-run --unit=victim -p MemoryHigh=30M python3 /opt/victim.py", timeout=200)
    bed.wait_for("it acted", lambda: bed.exists(events), timeout=120, pause=1)
    bed.wait_for("the threshold was seen", lambda: bool(bed.read("/run/crossing").strip()), timeout=120, pause=1)
    acted = float(json.loads(bed.read(events).splitlines()[0])["time"])
    late = acted - float(bed.read("/run/crossing"))
    return late if late >= -EARLY else float("inf")  # the guard acted for another reason, so nothing was measured
