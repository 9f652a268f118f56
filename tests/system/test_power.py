"""Power limits of GPUs: set while a model runs, and as before after whatever ends it. The GPUs and NVML are fakes; the units are real."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.beds.machine import Completed
from tests.beds.nspawn import Nspawn

pytestmark = pytest.mark.nspawn

FAKE = Path(__file__).parents[1] / "fakes/nvml.c"
LIBRARY, TOLD = "/usr/local/lib/libnvidia-ml.so.1", "/etc/fake-nvml"
CARDS = "/dev/cards"  # to which it is a link: units of a strict sandbox may write there
SLOW = f"{TOLD}.slow"
UNIT = "vllm-safe-power.service"
NOTE = "/run/vllm-safe/power"
UUIDS = tuple(f"GPU-00000000-0000-4000-8000-00000000000{number}" for number in (1, 2))
CARD = """\
card 0000:0{bus}:00.0 NVIDIA GeForce RTX 3060
  uuid {uuid}
  capability 8.6
  memory 12288 9000
  power 170 170 100 200
  persistence 0
  forgets 1
  busy 97
  draw 168
  temperature {heat}
  slowed {slowed}
  link 1 3
"""
DRIVER = "/opt/driver"  # in place of /proc/driver, where the recorder looks
# Answers until /opt/go is there, then ends as a server whose card fails.
SERVER = """
import http.server, os, sys, threading, time

def end():
    while not os.path.exists("/opt/go"):
        time.sleep(0.2)
    print("torch.AcceleratorError: CUDA error: unspecified launch failure", flush=True)
    os._exit(1)

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()

threading.Thread(target=end, daemon=True).start()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
CONFIG = """\
swap: {{size: none}}
metrics: {{textfile: /var/lib/prometheus/node-exporter}}
{gpu}
models:
  one: {{command: [/usr/bin/python3, /opt/server.py, '8001'], port: 8001}}
  two: {{command: [/usr/bin/python3, /opt/server.py, '8002'], port: 8002}}
"""


@pytest.fixture(scope="module")
def machine(deb: Path) -> Iterator[Nspawn]:
    with Nspawn(network=False) as bed:
        bed.install(deb)
        bed.put(FAKE, "/root/nvml.c")
        bed.run(f"gcc -shared -fPIC -o {LIBRARY} /root/nvml.c && ldconfig && ln -s {CARDS} {TOLD} && touch /dev/nvidiactl")
        bed.write("/opt/server.py", SERVER)
        bed.run("mkdir -p /var/lib/prometheus/node-exporter")
        for bus in (1, 2):
            bed.write(f"{DRIVER}/nvidia/gpus/0000:0{bus}:00.0/information", "Model: \t\t NVIDIA GeForce RTX 3060\n")
        drop_in = f"[Service]\nBindReadOnlyPaths={DRIVER}:/proc/driver\n"
        bed.write("/etc/systemd/system/vllm-safe-record@.service.d/cards.conf", drop_in)
        bed.run("systemctl daemon-reload")
        yield bed


@pytest.fixture
def bed(machine: Nspawn) -> Nspawn:
    """Reset the machine: no model runs, and both GPUs have their default limit of 170 W."""
    machine.run(f"rm -f {SLOW} /opt/go; systemctl stop 'vllm@*' {UNIT}; systemctl reset-failed", check=False)
    machine.run(f"rm -rf {NOTE} /var/lib/vllm-safe/runs/*")
    tell(machine)
    configure(machine)
    return machine


def tell(bed: Nspawn, *, heat: int = 71, slowed: int = 0) -> None:
    """Have NVML say this of the second GPU."""
    first = CARD.format(uuid=UUIDS[0], bus=1, heat=71, slowed=0)
    second = CARD.format(uuid=UUIDS[1], bus=2, heat=heat, slowed=slowed)
    bed.write(f"{CARDS}.told", f"error 0\ndriver 580.159.04\ncuda 13000\n{first}{second}")
    bed.run(f"mv {CARDS}.told {CARDS}")  # in one move: the recorder reads it each second


def lose(bed: Nspawn) -> None:
    """Have the second GPU fall off the bus."""
    bed.run(f"sed -i 's/^card 0000:02/lost 0000:02/' {CARDS}")


def configure(bed: Nspawn, limit: str = "75%") -> None:
    bed.write("/etc/vllm-safe/config.yaml", CONFIG.format(gpu=f"gpu: {{power_limit: {limit}}}" if limit else ""))


def limits(bed: Nspawn) -> list[tuple[float, int]]:
    """Return limit and persistence mode of each GPU."""
    told = bed.read(CARDS)
    watts, modes = (re.findall(rf"^  {fact} (\S+)", told, re.MULTILINE) for fact in ("power", "persistence"))
    return [(float(limit), int(mode)) for limit, mode in zip(watts, modes, strict=True)]


BEFORE = [(170.0, 0)] * 2
LIMITED = [(127.5, 1)] * 2


def restored(bed: Nspawn) -> None:
    bed.wait_for("all is as before", lambda: limits(bed) == BEFORE and not bed.exists(NOTE), timeout=60)


def start_that_is_refused(bed: Nspawn) -> str:
    """Start a model, and return why it was not started."""
    done: Completed = bed.run("systemctl start vllm@one", check=False)
    assert done.returncode != 0
    now = bed.properties("vllm@one.service", "StatusText", "ExecMainStatus", "NRestarts")
    assert (now["ExecMainStatus"], now["NRestarts"]) == ("2", "0"), now
    return now["StatusText"]


def test_it_says_what_it_would_do_and_does_it_while_a_model_runs(bed: Nspawn) -> None:
    assert "127.5 W (default 170 W, now 170 W)" in bed.out("vllm-safe show one")
    card = "set the power limit of GPU 1 (NVIDIA GeForce RTX 3060) to 127.5 W"
    assert f"would {card}" in bed.out("vllm-safe apply --power --dry-run")
    checked = bed.run("vllm-safe check", check=False).stdout
    assert "pass  power limits while a model runs: 127.5 W of 170 W for GPUs 0 and 1 (NVIDIA GeForce RTX 3060)" in checked
    assert limits(bed) == BEFORE

    bed.run("systemctl start vllm@one vllm@two")
    assert limits(bed) == LIMITED
    assert json.loads(bed.read(NOTE)) == {"asked": "75%", "before": {uuid: [170000, False] for uuid in UUIDS}}
    assert bed.out("vllm-safe apply --power --dry-run") == "nothing to do: already up to date"
    bed.run("systemctl stop vllm@one")
    assert limits(bed) == LIMITED, "the other still runs"
    bed.write("/etc/vllm-safe/config.yaml", "nonsense\n\t")
    bed.run("systemctl stop vllm@two")
    restored(bed)
    assert UNIT not in bed.failed_units()


def test_it_is_as_before_after_a_kill_of_everything(bed: Nspawn) -> None:
    bed.run("systemctl start vllm@one")
    assert limits(bed) == LIMITED
    bed.run("systemctl kill --signal=KILL vllm@one vllm-safe-record@one vllm-safe-guard " + UNIT, check=False)
    bed.wait_for("it waits for its restart", lambda: bed.properties("vllm@one", "SubState")["SubState"] == "auto-restart")
    assert limits(bed) == LIMITED, "it starts again"
    bed.run("systemctl stop vllm@one")
    restored(bed)


def test_after_a_kill_of_the_unit_half_way_a_model_runs_with_its_limits_or_none_is_left(bed: Nspawn) -> None:
    """The kill may hit what puts the limits back, too, which systemd starts at once: then the unit is started again."""
    bed.write(SLOW, "")
    bed.run("systemctl start --no-block vllm@one")
    bed.wait_for("the first GPU has its limit", lambda: limits(bed) == [LIMITED[0], BEFORE[1]])
    bed.run(f"rm {SLOW}; systemctl kill --signal=KILL {UNIT}")
    whole = {"active": LIMITED, "failed": BEFORE}
    bed.wait_for(
        "the limits are those of the model's state",
        lambda: limits(bed) == whole.get(bed.properties("vllm@one", "ActiveState")["ActiveState"]),
    )
    bed.run("systemctl start vllm@one")
    assert limits(bed) == LIMITED
    bed.run("systemctl stop vllm@one")
    restored(bed)


def test_a_limit_that_a_card_does_not_accept_is_refused_with_its_range(bed: Nspawn) -> None:
    configure(bed, "50W")
    reason = start_that_is_refused(bed)
    assert "GPUs 0 and 1 (NVIDIA GeForce RTX 3060): gpu.power_limit 50 W is out of range; expected 100 W to 200 W" in reason
    assert (limits(bed), bed.exists(NOTE)) == (BEFORE, False)
    assert f"fail  {reason.partition('. Correct')[0]}" in bed.run("vllm-safe check", check=False).stdout
    configure(bed, "100W")
    bed.run("systemctl start vllm@one")
    assert limits(bed) == [(100.0, 1)] * 2


def test_an_edit_and_a_restart_of_a_model_are_enough(bed: Nspawn) -> None:
    bed.run("systemctl start vllm@one")
    configure(bed, f"{{{UUIDS[1]}: 150W}}")
    bed.run("systemctl restart vllm@one")
    assert limits(bed) == [BEFORE[0], (150.0, 1)]
    configure(bed, "300W")
    bed.run("systemctl restart vllm@one", check=False)
    assert "expected 100 W to 200 W" in bed.properties("vllm@one", "StatusText")["StatusText"]
    configure(bed, "")
    bed.run("systemctl restart vllm@one")
    assert limits(bed) == BEFORE
    configure(bed, "{'0000:01:00.0': 80%}")
    bed.run("systemctl restart vllm@one")
    assert limits(bed) == [(136.0, 1), BEFORE[1]]


def test_without_its_capability_the_driver_refuses(bed: Nspawn) -> None:
    drop_in = f"/run/systemd/system/{UNIT}.d/none.conf"
    bed.write(drop_in, "[Service]\nCapabilityBoundingSet=\n")
    bed.run("systemctl daemon-reload")
    try:
        assert "Insufficient Permissions" in start_that_is_refused(bed)
        assert limits(bed) == BEFORE
    finally:
        bed.run(f"rm {drop_in}; systemctl daemon-reload")


def test_a_card_that_is_lost_keeps_no_other_from_its_limit(bed: Nspawn) -> None:
    bed.run("systemctl start vllm@one")
    lose(bed)
    bed.run("systemctl stop vllm@one")
    bed.wait_for("the other is as before", lambda: limits(bed)[0] == BEFORE[0] and not bed.exists(NOTE))
    assert UNIT not in bed.failed_units()


def test_without_a_driver_a_model_of_the_cpu_starts(bed: Nspawn) -> None:
    bed.run("rm /dev/nvidiactl")
    try:
        bed.run("systemctl start vllm@one")
    finally:
        bed.run("touch /dev/nvidiactl")


def test_heat_and_a_lost_card_are_recorded_and_told(bed: Nspawn) -> None:
    bed.run("systemctl start vllm@one")
    tell(bed, heat=91, slowed=0x20)
    bed.wait_for("status shows it", lambda: "GPU 1 throttled by heat" in bed.out("vllm-safe status one"))
    shown = bed.out("vllm-safe status one")
    assert "GPUs: 17.6 GiB of 24.0 GiB, 336 W, 71-91 °C, link x1 Gen3" in shown
    file = "/var/lib/prometheus/node-exporter/vllm-safe-one.prom"
    heat = 'gpu_throttled_ratio{model="one",gpu="1",reason="heat"} 1'
    bed.wait_for("the metrics have it", lambda: heat in bed.read(file), timeout=60, pause=1)
    assert 'gpu_power_watts{model="one",gpu="1"} 168' in bed.read(file)

    lose(bed)
    bed.wait_for("it is noticed", lambda: "has fallen off the bus, as NVML reports" in bed.out("vllm-safe why one --json"))
    bed.write("/opt/go", "")
    bed.wait_for("its end", lambda: json.loads(bed.out("vllm-safe why one --json"))["code"] != "running", timeout=60)
    verdict = json.loads(bed.out("vllm-safe why one --json"))
    assert verdict["code"] == "gpu-fault"
    assert "GPU 1 (NVIDIA GeForce RTX 3060, 0000:02:00): it has fallen off the bus" in verdict["sentence"]
    assert "before the server ended." in verdict["sentence"]
    assert any("GPU 1 was throttled by heat for" in fact["text"] for fact in verdict["evidence"]), verdict["evidence"]
    assert re.search(r"Peak temperature of GPU 1 +91 °C", bed.out("vllm-safe report one --text"))


def test_a_removal_leaves_the_limits_as_they_were(bed: Nspawn) -> None:
    bed.run("systemctl start vllm@one")
    assert limits(bed) == LIMITED
    bed.run("apt-get remove --yes vllm-safe", timeout=300)
    assert limits(bed) == BEFORE
