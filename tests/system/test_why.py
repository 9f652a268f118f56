"""Each kind of death, provoked for real, and `vllm-safe why` naming it: by the kernel, earlyoom, a person, a full disk, the power.

The models are servers that behave as they are told (tests/fakes/server.py), and one that eats memory; at the end the real vLLM.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.beds import engine
from tests.beds.machine import BedError, Machine
from tests.beds.vm import Virtual

FAKE = Path(__file__).parents[1] / "fakes/server.py"
LIVES = ("start", "running")  # the states of a unit whose server has not ended
# Says that it is healthy, and eats `MiB` of memory that cannot be compressed once /tmp/eat/NAME is there.
HOG = """
import http.server, os, sys, threading, time

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        pass

def eat(trigger, most):
    while not os.path.exists(trigger):
        time.sleep(0.3)
    held = []
    while len(held) < most:
        held.append(bytearray(os.urandom(4096) * 256))
        time.sleep(0.01)  # as fast as models grow, so that earlyoom has a chance
    time.sleep(1e6)

threading.Thread(target=eat, args=(sys.argv[2], int(sys.argv[3])), daemon=True).start()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
# Prints the end of a model's last run, and the last record.
LAST = """
import json, sys
from vllm_safe.record.run_reader import list_runs, read_run
run = read_run(sys.argv[1], list_runs(sys.argv[1])[0])
start, last = run.start, run.samples[-1]
print(json.dumps({"end": run.end, "boot": start.boot, "memory_max": start.limits["memory_max"], "anon": last.anon, "time": last.time}))
"""
# name -> (command, further settings)
MODELS = {
    "hog": ("python3 /opt/hog.py {port} /opt/eat-hog 4000", "limits: {memory_max: 200M, swap_max: 96M}"),
    "unswapped": ("python3 /opt/hog.py {port} /opt/eat-unswapped 4000", "limits: {memory_max: 200M, swap_max: 0}"),
    "stalls": ("python3 /opt/fake.py {port} --never", "stall_timeout: 15s"),
    "deadline": ("python3 /opt/fake.py {port} --load 1000", "start_timeout: 12s"),
    "hangs": ("python3 /opt/fake.py {port} --silent 3", "hang_timeout: 15s"),
    "second": ("python3 -m http.server --bind 127.0.0.1 8001", ""),
    "fills": ("python3 /opt/fake.py {port} --fill /var/cache/vllm-safe/small/full", ""),
    "words": ("python3 /opt/fake.py {port} --say 'ValueError: it is Tuesday' --exit 1", ""),
    "good": ("python3 /opt/fake.py {port}", ""),
}


def configure(bed: Machine, names: tuple[str, ...]) -> None:
    bed.write("/opt/fake.py", FAKE.read_text())
    bed.write("/opt/hog.py", HOG)
    lines = ["swap: {size: none}", "guard: {enabled: no}", "models:"]
    for number, (name, (command, more)) in enumerate(MODELS.items()):
        port = 8001 + number
        lines += [f"  {name}:", f'    command: [/bin/sh, -c, "exec {command.format(port=port)}"]', f"    port: {port}"]
        lines += [f"    {more}"] if more else []
    assert set(names) <= set(MODELS)
    bed.write("/etc/vllm-safe/config.yaml", "\n".join(lines) + "\n")


def why(bed: Machine, name: str, *options: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(bed.out(["vllm-safe", "why", name, "--json", *options]))
    return found


def ended(bed: Machine, name: str, *, timeout: float = 120) -> dict[str, Any]:
    """Why the first start of `name` ended, once the recorder has it all; the model is then stopped for good."""
    runs: list[dict[str, Any]] = []

    def is_over() -> bool:
        # systemd is cheaper to ask than `why`, which takes seconds in an emulated machine.
        if bed.properties(f"vllm@{name}.service", "SubState", "NRestarts") in ({"SubState": state, "NRestarts": "0"} for state in LIVES):
            return False
        listed = bed.run(["vllm-safe", "why", name, "--list", "--json"], check=False)
        runs[:] = json.loads(listed.stdout) if listed.returncode == 0 else []
        return bool(runs) and runs[-1]["code"] not in {"running", "unknown"}

    try:
        bed.wait_for(f"the end of {name}", is_over, timeout=timeout)
    except BedError as late:
        said = bed.run(f"vllm-safe why {name} --list; systemctl status vllm@{name} vllm-safe-record@{name}", check=False)
        pytest.fail(f"{late}\n{said.stdout}{said.stderr}", pytrace=False)
    bed.run(["systemctl", "stop", f"vllm@{name}"], check=False)
    return why(bed, name, "--run", runs[-1]["run"])


def start(bed: Machine, name: str) -> None:
    bed.run(["systemctl", "start", "--no-block", f"vllm@{name}"])


def serving(bed: Machine, name: str) -> None:
    start(bed, name)
    bed.wait_for(f"{name} to serve", lambda: bed.properties(f"vllm@{name}.service", "ActiveState")["ActiveState"] == "active", timeout=120)


def is_recorded(bed: Machine, name: str) -> bool:
    """Whether `why` says of `name` that it runs. Before its first record, within a second of the start, it says to wait for that."""
    asked = bed.run(["vllm-safe", "why", name, "--json"], check=False)
    assert asked.returncode == 0 or "Try again soon" in asked.stderr, asked.stderr
    return asked.returncode == 0 and json.loads(asked.stdout)["code"] == "running"


def texts(verdict: dict[str, Any]) -> str:
    return "\n".join(fact["text"] for fact in verdict["evidence"])


@pytest.fixture(scope="module")
def bed(nspawn_installed: Machine) -> Machine:
    """Boot a container with every model of the table. No model is started."""
    configure(nspawn_installed, tuple(MODELS))
    return nspawn_installed


@pytest.mark.nspawn
def test_nothing_was_started(bed: Machine) -> None:
    """The error has a hint."""
    refused = bed.run(["vllm-safe", "why", "good"], check=False)
    assert (refused.returncode, "systemctl start vllm@good" in refused.stderr) == (1, True)


@pytest.mark.nspawn
def test_stopped_by_a_person(bed: Machine) -> None:
    """While it runs, `why` says so; then who ended it, also to a person of the group adm, and to others how to ask."""
    serving(bed, "good")
    bed.wait_for("the first record", lambda: is_recorded(bed, "good"), timeout=30)
    bed.run("systemctl stop vllm@good")
    bed.wait_for("the end", lambda: why(bed, "good")["code"] == "stopped", timeout=30)
    assert "was stopped" in bed.out("setpriv --reuid=1234 --regid=1234 --groups=adm vllm-safe why good")
    refused = bed.run("setpriv --reuid=1234 --regid=1234 --clear-groups vllm-safe why good", check=False)
    assert "sudo vllm-safe why good" in refused.stderr


@pytest.mark.nspawn
def test_killed_by_a_signal(bed: Machine) -> None:
    """The server is killed by hand, and no one of those who kill for memory is blamed."""
    serving(bed, "good")
    bed.run("pkill -KILL -u vllm -f '^python3 /opt/fake.py'")
    bed.wait_for("the record", lambda: why(bed, "good", "--run", "1")["code"] == "signal", timeout=60)
    bed.run("systemctl stop vllm@good")


@pytest.mark.nspawn
def test_many_ends(bed: Machine) -> None:
    """All at once, each by its own name: a stall, a deadline, a hang, a port, and a server's own words."""
    names = {"stalls": "stall", "deadline": "start-timeout", "hangs": "hang", "words": "exited"}
    for name in names:
        start(bed, name)
    found = {name: ended(bed, name) for name in names}
    assert {name: verdict["code"] for name, verdict in found.items()} == names
    assert "ValueError: it is Tuesday" in found["words"]["sentence"]
    changes = {name: [(change["path"], change["new"]) for change in verdict["changes"]] for name, verdict in found.items()}
    assert changes["stalls"] == [("models.stalls.stall_timeout", "15min")]
    assert changes["deadline"] == [("models.deadline.start_timeout", "15min")]
    assert changes["hangs"] == [("models.hangs.hang_timeout", "15min")]


@pytest.mark.nspawn
def test_its_port_is_taken(bed: Machine) -> None:
    """A server that is told a port of somebody else's: Python's own words, and the port."""
    bed.run("systemd-run --unit=taker python3 -m http.server --bind 127.0.0.1 8001")
    bed.wait_for("the taker", lambda: bed.run("ss -ltn | grep -q :8001", check=False).returncode == 0, timeout=20)
    start(bed, "second")
    verdict = ended(bed, "second")
    assert verdict["code"] == "port-taken"
    assert "Address already in use" in texts(verdict)


@pytest.mark.nspawn
def test_refused(bed: Machine) -> None:
    """A start that cannot work is not begun, and why says for what reason."""
    start(bed, "hog")
    verdict = ended(bed, "hog")
    assert verdict["code"] == "refused"
    assert "8001 is already in use" in verdict["sentence"]


@pytest.mark.nspawn
def test_its_disk_is_full(bed: Machine) -> None:
    """The server's own complaint."""
    bed.run("mkdir -p /var/cache/vllm-safe/small && mount -t tmpfs -o size=1M,uid=$(id -u vllm) small /var/cache/vllm-safe/small")
    start(bed, "fills")
    assert ended(bed, "fills")["code"] == "disk-full"


@pytest.mark.nspawn
def test_without_a_config(bed: Machine) -> None:
    """Recorded runs can be read without it."""
    bed.run("mv /etc/vllm-safe/config.yaml /etc/vllm-safe/kept.yaml && echo 'models: [' > /etc/vllm-safe/config.yaml")
    assert "was killed by SIGKILL" in bed.out("vllm-safe why good --list")
    assert bed.out("vllm-safe why stalls --run 1").startswith("stalls ")
    bed.run("mv /etc/vllm-safe/kept.yaml /etc/vllm-safe/config.yaml")


@pytest.mark.nspawn
def test_the_real_vllm(nspawn_serving: Machine) -> None:
    """A folder without a model, a length that no KV cache holds, an option that it does not know: told apart, with what to change."""
    bed = nspawn_serving
    bed.run("mkdir -p /srv/models/empty && cp -r /srv/models/tiny /srv/models/long && echo '{}' > /srv/models/empty/config.json")
    bed.run("touch /srv/models/empty/model.safetensors")
    bed.run("sed -i '/max_position/s/[0-9]\\+/3000000/' /srv/models/long/config.json")
    more = (
        "  unknown: {model: /srv/models/tiny, port: 8002, args: {no-such-option: 1}}\n"
        "  empty: {model: /srv/models/empty, port: 8003}\n"
        "  long: {model: /srv/models/long, port: 8004, args: {enforce-eager: true}, env: {VLLM_CPU_KVCACHE_SPACE: '1'}}\n"
    )
    bed.write("/etc/vllm-safe/config.yaml", engine.CONFIG + more)
    for name in ("unknown", "empty", "long"):
        start(bed, name)
    found = {name: ended(bed, name, timeout=400) for name in ("unknown", "empty", "long")}
    assert found["unknown"]["code"] == "bad-argument", found["unknown"]
    assert found["empty"]["code"] in {"no-model", "refused", "bad-setting"}, found["empty"]
    assert found["long"]["code"] == "kv-cache-too-small", found["long"]
    (change,) = found["long"]["changes"]
    assert change["path"] == "models.long.args.max-model-len"
    assert 0 < int(change["new"]) < 3_000_000


def starved(bed: Machine, name: str) -> dict[str, Any]:
    """Why `name` ended that took all the memory there was; what was recorded of it before is forgotten."""
    bed.run(f"rm -rf /var/lib/vllm-safe/runs/{name} /opt/eat-{name}")
    serving(bed, name)
    bed.write(f"/opt/eat-{name}", "")
    return ended(bed, name, timeout=240)


@pytest.mark.vm
def test_deaths_by_memory_and_power(vm_installed: Virtual) -> None:
    """In one machine of 1 GiB: its limit with and without swap, earlyoom, the kernel, and last the power. The guard: test_guard.py."""
    bed = vm_installed
    configure(bed, ("hog", "unswapped", "good"))
    bed.run("fallocate -l 512M /swap && chmod 600 /swap && mkswap -q /swap && swapon /swap")

    serving(bed, "hog")
    bed.write("/opt/eat-hog", "")
    verdict = ended(bed, "hog", timeout=240)
    assert verdict["code"] == "memory-limit-swap", verdict
    assert "oom_kill" in texts(verdict)
    assert verdict["changes"]

    serving(bed, "unswapped")
    bed.write("/opt/eat-unswapped", "")
    verdict = ended(bed, "unswapped", timeout=240)
    assert verdict["code"] == "memory-limit-ram", verdict
    bed.run("rm -f /opt/eat-*")

    config = bed.read("/etc/vllm-safe/config.yaml").replace("memory_max: 200M, swap_max: 96M", "memory_max: 90%, swap_max: 100%")
    tight = "protect: {system: 40M, user: 20M, init: 8M, kernel: 0, per_gpu: 0}\n"
    bed.write("/etc/vllm-safe/config.yaml", config + tight)
    # Another program holds memory that cannot be taken from it: nothing is left while the hog is far from its limit.
    bed.run("swapoff /swap; mount -t tmpfs -o size=900M press /mnt; head -c 560M /dev/zero > /mnt/x", timeout=120)
    verdict = starved(bed, "hog")
    assert verdict["code"] == "earlyoom", json.dumps(verdict, indent=1)
    assert "earlyoom sent SIG" in texts(verdict)

    bed.run("systemctl stop earlyoom")
    verdict = starved(bed, "hog")
    assert verdict["code"] == "kernel-oom", verdict
    assert "because the machine was out of memory" in texts(verdict)
    bed.run("rm -f /mnt/x /opt/eat-*; umount /mnt; systemctl start earlyoom")

    serving(bed, "good")
    bed.wait_for("the first record", lambda: is_recorded(bed, "good"), timeout=60)
    bed.run("sync")  # files from before stay; from here on, only the recorder sees to it that its files do
    cut = float(bed.out("sleep 12; date +%s.%N", timeout=60))
    bed.power_cut()
    bed.boot()
    verdict = why(bed, "good")
    assert verdict["code"] == "power-cut", verdict
    assert "boot" in texts(verdict)
    run = json.loads(bed.out(["/usr/lib/vllm-safe/bin/python3", "-I", "-c", LAST, "good"]))
    assert run["end"] is None
    assert run["boot"] != bed.read("/proc/sys/kernel/random/boot_id").strip()
    assert run["memory_max"] > 100 << 20
    assert run["anon"] > 1 << 20
    assert run["time"] > cut - 15, "the last few seconds at most are lost"
