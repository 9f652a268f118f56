"""Models on demand: connections start them, idle ones end, and they make room for each other. Units and sockets are systemd's own."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.beds.machine import Completed
from tests.beds.nspawn import Nspawn

pytestmark = pytest.mark.nspawn

# Answers with its name, after as many seconds as the path says; ends when its last request is answered, as vLLM does.
SERVER = """
import http.server, os, signal, sys, threading, time

name = sys.argv[2]
if os.path.exists(f"/opt/{name}.fails"):
    sys.exit("RuntimeError: it cannot be")
time.sleep(0.5)

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path != "/health":
            time.sleep(float(self.path[1:] or 0))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(name.encode())

server = http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
server.daemon_threads = False
signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
server.serve_forever()
server.server_close()
"""
MODEL = """\
  {name}:
    command: [/usr/bin/python3, /opt/server.py, '{inner}', {name}]
    port: {port}
    on_demand: true
    idle_timeout: {idle}
    hang_timeout: 5s
    limits: {{memory_max: {memory}}}
"""
PORTS = {"one": 8001, "two": 8002, "small": 8003}
CONFIG = "/etc/vllm-safe/config.yaml"
ON_DEMAND = "vllm-on-demand.service"


def config(*, idle: str = "1h", small: int = 8003) -> str:
    """Return a configuration of two large models, of which one fits at a time, and of a small one."""
    models = [("one", 8001, "1h", "60%"), ("two", 8002, "1h", "60%"), ("small", small, idle, "5%")]
    text = "".join(MODEL.format(name=name, port=port, inner=port + 10_000, idle=time, memory=memory) for name, port, time, memory in models)
    # The last one is never started. Together, models may use as much RAM as the one with the largest limit.
    return f"swap: {{size: none}}\nmodels:\n{text}  any: {{command: [/bin/false], port: 8009}}\n"


@pytest.fixture(scope="module")
def machine(deb: Path) -> Iterator[Nspawn]:
    with Nspawn(network=False) as bed:
        bed.install(deb)
        bed.write("/opt/server.py", SERVER)
        bed.write(CONFIG, config())
        bed.run(f"systemctl start {ON_DEMAND}")
        yield bed


@pytest.fixture
def bed(machine: Nspawn) -> Nspawn:
    """Reset the machine: no model runs, and all sockets listen."""
    machine.run("rm -f /opt/*.fails; systemctl stop 'vllm@*'; systemctl reset-failed", check=False)
    if machine.read(CONFIG) != config():
        machine.write(CONFIG, config())
        machine.run(f"systemctl reload {ON_DEMAND}")
    return machine


def ask(bed: Nspawn, name: str, path: str = "") -> Completed:
    return bed.run(["curl", "--silent", "--show-error", "--max-time", "60", f"http://127.0.0.1:{PORTS[name]}/{path}"], check=False)


def shown(bed: Nspawn, unit: str, name: str) -> str:
    return bed.out(["systemctl", "show", "--value", "--property", name, unit])


def is_up(bed: Nspawn, name: str) -> bool:
    return shown(bed, f"vllm@{name}", "ActiveState") == "active"


def asked(bed: Nspawn, name: str) -> bool:
    """Return whether a request has started the model that is up."""
    return json.loads(bed.read(f"/run/vllm-safe/launch/{name}.json"))["request"] > 0


def test_a_connection_starts_the_model_and_gets_its_answer(bed: Nspawn) -> None:
    assert ask(bed, "one").stdout == "one"
    assert is_up(bed, "one")
    assert asked(bed, "one")
    assert "127.0.0.1:8002" in bed.out("systemctl list-sockets --no-pager 'vllm-on-demand@*'")
    assert not is_up(bed, "two")


def test_only_the_gateway_and_root_may_use_its_socket(bed: Nspawn) -> None:
    connect = "import socket; socket.socket(socket.AF_UNIX).connect('/run/vllm-safe/on-demand/small.sock')"
    assert "PermissionError" in bed.run(["setpriv", "--reuid=nobody", "--clear-groups", "python3", "-c", connect], check=False).stderr
    as_gateway = ["setpriv", "--reuid=vllm-gateway", "--regid=vllm-gateway", "--clear-groups"]
    bed.run([*as_gateway, "python3", "-c", connect])
    bed.wait_for("small is up", lambda: is_up(bed, "small"))
    settings = json.loads(bed.run([*as_gateway, "cat", "/run/vllm-safe/gateway/gateway.json"]).stdout)
    assert [model["name"] for model in settings["models"]] == ["one", "two", "small", "any"]
    assert settings["models"][2]["address"] == ["127.0.0.1", 18003]


def test_it_ends_when_nobody_asks_and_the_next_request_starts_it_again(bed: Nspawn) -> None:
    bed.write(CONFIG, config(idle="2s"))
    assert ask(bed, "small").stdout == "small"
    bed.wait_for("small has ended", lambda: shown(bed, "vllm@small", "ActiveState") == "inactive")
    assert shown(bed, "vllm@small", "Result") == "success"
    assert "stopped: no request for 2 s (idle_timeout)" in bed.out("vllm-safe why small")
    bed.wait_for("its proxy has ended", lambda: shown(bed, "vllm-on-demand@small.service", "ActiveState") == "inactive")
    assert ask(bed, "small").stdout == "small"


def test_what_a_person_starts_stays(bed: Nspawn) -> None:
    bed.write(CONFIG, config(idle="2s"))
    bed.run("systemctl start vllm@small")
    assert ask(bed, "small").stdout == "small"
    assert not asked(bed, "small")
    assert json.loads(bed.read("/run/vllm-safe/state/small.json"))["used"] is None


def test_a_restart_by_hand_keeps_up_what_a_request_started(bed: Nspawn) -> None:
    ask(bed, "small")
    assert asked(bed, "small")
    bed.run("systemctl restart vllm@small")
    assert not asked(bed, "small")


def test_a_restart_by_itself_leaves_it_what_it_was(bed: Nspawn) -> None:
    bed.write("/run/systemd/system/vllm@small.service.d/soon.conf", "[Service]\nRestartSec=1\n")
    bed.run("systemctl daemon-reload")
    for by_hand in (True, False):
        bed.run("systemctl stop vllm@small")
        bed.run("systemctl start vllm@small") if by_hand else ask(bed, "small")
        bed.run("systemctl kill --signal=KILL vllm@small")
        bed.wait_for("it is up again", lambda: shown(bed, "vllm@small", "NRestarts") == "1" and is_up(bed, "small"))
        assert asked(bed, "small") is not by_hand
    bed.run("rm -r /run/systemd/system/vllm@small.service.d/soon.conf; systemctl daemon-reload")


def test_a_model_makes_room_when_it_has_answered(bed: Nspawn) -> None:
    ask(bed, "one")
    with ThreadPoolExecutor() as pool:
        slow = pool.submit(ask, bed, "one", "4")
        bed.wait_for("the slow request is there", lambda: ":18001" in bed.out("ss -Htn state established '( sport = :18001 )'"))
        assert ask(bed, "two").stdout == "two"
        assert slow.result().stdout == "one"
    assert shown(bed, "vllm@one", "ActiveState") == "inactive"
    assert is_up(bed, "two")
    assert bed.out("vllm-safe why one").startswith("one was stopped to make room for two.")


def test_a_small_model_makes_no_room(bed: Nspawn) -> None:
    ask(bed, "one")
    assert ask(bed, "small").stdout == "small"
    assert is_up(bed, "one")


def test_nothing_stops_what_a_person_started(bed: Nspawn) -> None:
    bed.run("systemctl start vllm@one")
    assert ask(bed, "two").returncode != 0
    said = shown(bed, "vllm@two", "StatusText")
    assert re.search(r"there is no room for two, which needs \S+ GiB of RAM: of \S+ GiB, one has \S+ GiB, which was started by hand", said)
    assert "systemctl stop vllm@one.service" in said
    assert is_up(bed, "one")
    bed.run("systemctl stop vllm@one")
    bed.wait_for("the proxy has ended", lambda: shown(bed, "vllm-on-demand@two.service", "ActiveState") == "inactive")
    assert ask(bed, "two").stdout == "two"


def test_a_person_has_precedence_over_requests(bed: Nspawn) -> None:
    ask(bed, "one")
    bed.run("systemctl start vllm@two")
    assert (is_up(bed, "one"), asked(bed, "two")) == (False, False)


def test_a_start_that_fails_is_not_repeated_by_its_clients(bed: Nspawn) -> None:
    bed.write("/opt/small.fails", "")
    since = bed.out("date +%s.%N").strip()
    assert ask(bed, "small").returncode != 0
    assert shown(bed, "vllm-on-demand@small.socket", "ActiveState") == "active"
    count = f"journalctl --since=@{since} -u vllm@small -o cat | grep -c '^Starting'"
    assert bed.out(count).strip() == "1"


def test_an_edit_moves_the_socket_and_a_mistake_moves_nothing(bed: Nspawn) -> None:
    ask(bed, "one")
    bed.write(CONFIG, config(small=8004))
    bed.run(f"systemctl reload {ON_DEMAND}")
    listening = bed.out("systemctl list-sockets --no-pager 'vllm-on-demand@*'")
    assert "127.0.0.1:8004" in listening
    assert "127.0.0.1:8003" not in listening
    bed.write(CONFIG, "models: {one: {modle: x}}")
    assert bed.run(f"systemctl reload {ON_DEMAND}", check=False).returncode != 0
    assert bed.out("systemctl list-sockets --no-pager 'vllm-on-demand@*'") == listening
    assert ask(bed, "one").stdout == "one"


def test_an_upgrade_closes_no_socket_and_ends_no_model(bed: Nspawn, deb: Path) -> None:
    ask(bed, "one")
    before = [shown(bed, unit, "ActiveEnterTimestamp") for unit in ("vllm-on-demand@one.socket", "vllm@one.service")]
    bed.put(deb, "/root/again.deb")
    bed.run("dpkg --install /root/again.deb")
    assert [shown(bed, unit, "ActiveEnterTimestamp") for unit in ("vllm-on-demand@one.socket", "vllm@one.service")] == before
    assert ask(bed, "one").stdout == "one"


def test_a_removal_leaves_nothing(machine: Nspawn) -> None:
    machine.write(CONFIG, config())
    machine.run("apt-get purge -y -q vllm-safe")
    assert machine.out("ls /run/systemd/system | grep on-demand || true") == ""
    assert machine.out("systemctl list-units --all --no-legend 'vllm*'") == ""
    assert machine.out("ss -Hltn 'sport >= :8001 and sport <= :8004'") == ""
    assert machine.out("ls -d /run/vllm-safe 2>/dev/null || true") == ""
