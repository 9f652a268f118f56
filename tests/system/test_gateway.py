"""The gateway with everything around it: its unit, systemd's sockets, models of our own, and the real vLLM with OpenAI's client."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.beds import engine, quick_engine, trees
from tests.beds.nspawn import Nspawn

pytestmark = pytest.mark.nspawn

WITH_VLLM = trees.RELEASE == "bookworm"  # the wheels of the engine are those of its Python

# Answers as the fields of a request say. When it is stopped it answers what it has begun, as vLLM does.
SERVER = """
import http.server, json, os, signal, sys, threading, time

name, active = sys.argv[2], 0
if os.path.exists(f"/opt/{name}.fails"):
    sys.exit("RuntimeError: it cannot be")
time.sleep(1)

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.answer(b"{}")

    def do_POST(self):
        global active
        active += 1
        given = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if given.get("stream"):
            self.stream(given["seconds"])
        else:
            time.sleep(given.get("seconds", 0))
            self.answer(json.dumps({"model": name}).encode())
        active -= 1

    def stream(self, seconds):
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for _ in range(int(seconds * 10)):
            self.wfile.write(b"d\\r\\ndata: token\\n\\n\\r\\n")
            time.sleep(0.1)
        self.wfile.write(b"0\\r\\n\\r\\n")

    def answer(self, text):
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        pass

server = http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
server.daemon_threads = True
signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
server.serve_forever()
server.socket.close()
while active:
    time.sleep(0.05)
"""
MODEL = """\
  {name}:
    command: [/usr/bin/python3, /opt/server.py, '{inner}', {name}]
    port: {port}
    on_demand: true
    idle_timeout: {idle}
    stop_grace: 20s
    limits: {{memory_max: 30%}}
"""
GATEWAY = "gateway: {enabled: true, port: 8080}\n"
CONFIG = "/etc/vllm-safe/config.yaml"
URL = "http://127.0.0.1:8080"
NAMES = ("one", "two", "three")

# Clients of the mixed load: prints the answers that were wrong, and the longest wait.
LOAD = """
import json, random, sys, threading, time, urllib.error, urllib.request

random.seed(16)
wrong, longest, counts = [], 0, {}
end = time.monotonic() + float(sys.argv[1])

def client(number):
    global longest
    while time.monotonic() < end:
        name = random.choice(["one", "two", "three"])
        body = json.dumps({"model": name, "seconds": random.random()}).encode()
        begin = time.monotonic()
        try:
            with urllib.request.urlopen("http://127.0.0.1:8080/v1/completions", body, timeout=120) as answer:
                got = json.load(answer)
            if got != {"model": name}:
                wrong.append(got)
        except urllib.error.HTTPError as error:
            wrong.append(error.read().decode())
        except OSError as error:
            wrong.append(str(error))
        longest = max(longest, time.monotonic() - begin)
        counts[name] = counts.get(name, 0) + 1
        time.sleep(random.random())

threads = [threading.Thread(target=client, args=(number,)) for number in range(6)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(json.dumps({"wrong": wrong, "longest": longest, "counts": counts}))
"""
OPENAI = f"""
import openai

client = openai.OpenAI(base_url="{URL}/v1", api_key="none", max_retries=0, timeout=300)
print(sorted((model.id, model.state) for model in client.models.list()))
for name in ("demo", "other"):
    whole = client.completions.create(model=name, prompt="a", max_tokens=3, temperature=0)
    events = list(client.completions.create(model=name, prompt="a", max_tokens=3, temperature=0, stream=True))
    text = "".join(choice.text for event in events for choice in event.choices)
    print(name, whole.usage.completion_tokens, text == whole.choices[0].text, {{event.model for event in events}})
try:
    client.completions.create(model="none", prompt="a")
except openai.NotFoundError as error:
    print(error.code)
"""


def config(*, idle: str = "1h", port: int = 8080) -> str:
    """Return a configuration of three models of which two fit, and with a real vLLM two tiny ones."""
    text = "".join(MODEL.format(name=name, port=8001 + number, inner=18001 + number, idle=idle) for number, name in enumerate(NAMES))
    tiny = "".join(
        f"  {name}: {{model: {engine.MODEL}, port: {port}, on_demand: true, limits: {{memory_max: 60%}}, "
        'args: {enforce-eager: true}, env: {VLLM_CPU_KVCACHE_SPACE: "1"}}\n'
        for name, port in (("demo", 8011), ("other", 8012))
    )
    # `any` is never started. Together, models may use as much RAM as the one with the largest limit.
    rest = "  any: {command: [/bin/false], port: 8009, limits: {memory_max: 70%}}\n"
    return f"swap: {{size: none}}\n{GATEWAY.replace('8080', str(port))}models:\n{text}{tiny if WITH_VLLM else ''}{rest}"


@pytest.fixture(scope="module")
def machine(deb: Path) -> Iterator[Nspawn]:
    with Nspawn(network=False, layers=quick_engine.layers(deb) if WITH_VLLM else ()) as bed:
        bed.install(deb)
        bed.write("/opt/server.py", SERVER)
        bed.write("/opt/load.py", LOAD)
        bed.write("/opt/client.py", OPENAI)
        bed.write(CONFIG, config())
        bed.run("systemctl start vllm-gateway")
        yield bed


@pytest.fixture
def bed(machine: Nspawn) -> Nspawn:
    """Reset the machine: no model runs."""
    machine.run("rm -f /opt/*.fails; systemctl stop 'vllm@*'; systemctl reset-failed", check=False)
    machine.write(CONFIG, config())
    machine.run("systemctl reload-or-restart vllm-gateway")
    return machine


def ask(bed: Nspawn, name: str, **fields: object) -> dict[str, object]:
    """Return the answer, and "status"."""
    body = json.dumps({**fields, "model": name})
    done = bed.run(
        ["curl", "--silent", "--show-error", "--max-time", "90", "--write-out", "\n%{http_code}", "--data", body, f"{URL}/v1/completions"],
        check=False,
    )
    text, _, status = done.stdout.rpartition("\n")
    return {**(json.loads(text) if text.startswith("{") else {"text": text}), "status": int(status or 0), "stderr": done.stderr}


def shown(bed: Nspawn, unit: str, name: str) -> str:
    return bed.out(["systemctl", "show", "--value", "--property", name, unit]).strip()


def up(bed: Nspawn) -> list[str]:
    active = bed.run(["systemctl", "is-active", *(f"vllm@{name}" for name in NAMES)], check=False).stdout.split()
    return [name for name, state in zip(NAMES, active, strict=True) if state == "active"]


def states(bed: Nspawn) -> dict[str, str]:
    return {model["id"]: model["state"] for model in json.loads(bed.out(f"curl -sS {URL}/v1/models"))["data"]}


def resident(bed: Nspawn) -> float:
    """Return what the gateway uses, in MiB."""
    status = bed.read(f"/proc/{shown(bed, 'vllm-gateway', 'MainPID')}/status")
    return int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) / 1024


def test_it_answers_of_itself_and_wakes_nothing(bed: Nspawn) -> None:
    assert json.loads(bed.out(f"curl -sS {URL}/health")) == {"status": "ok"}
    assert set(states(bed).values()) == {"stopped"}
    assert "vllm_safe_gateway_connections 1" in bed.out(f"curl -sS {URL}/metrics")
    assert bed.out(f"curl -sS -o /dev/null -w '%{{http_code}}' {URL}/version") == "404"
    assert up(bed) == []
    assert shown(bed, "vllm-gateway", "User") == "vllm-gateway"
    assert shown(bed, "vllm-gateway", "StatusText").startswith("listens on 127.0.0.1:8080 for one, two, three")
    assert resident(bed) < 40


def test_a_request_starts_its_model(bed: Nspawn) -> None:
    answer = ask(bed, "one")
    assert (answer["status"], answer["model"]) == (200, "one")
    assert up(bed) == ["one"]
    assert states(bed)["one"] == "ready"


def test_a_stream_passes_after_comments_about_the_load(bed: Nspawn) -> None:
    text = str(ask(bed, "one", stream=True, seconds=0.5)["text"])
    assert text.startswith(": one")
    assert text.endswith("\n\n" + "data: token\n\n" * 5)
    assert ask(bed, "one", stream=True, seconds=0.5)["text"] == "data: token\n\n" * 5


def test_a_model_that_answers_makes_room_when_it_has_answered(bed: Nspawn) -> None:
    ask(bed, "one")
    ask(bed, "two")
    with ThreadPoolExecutor() as pool:
        slow = [pool.submit(ask, bed, name, seconds=4) for name in ("one", "two")]
        bed.wait_for("both are asked", lambda: 'requests_running{model="two"} 1' in bed.out(f"curl -sS {URL}/metrics"))
        assert ask(bed, "three")["model"] == "three"
        assert [one.result().get("model") for one in slow] == ["one", "two"]
    assert len(up(bed)) == 2


def test_an_idle_model_stops_and_the_next_request_starts_it_again(bed: Nspawn) -> None:
    bed.write(CONFIG, config(idle="3s"))
    bed.run("systemctl reload vllm-gateway")
    ask(bed, "one")
    bed.wait_for("it has stopped", lambda: up(bed) == [])
    assert states(bed)["one"] == "stopped"
    assert ask(bed, "one")["status"] == 200


def test_what_a_person_started_stays(bed: Nspawn) -> None:
    bed.run("systemctl start vllm@one vllm@two")
    refused = ask(bed, "three")
    assert refused["status"] == 503
    assert "which were started by hand" in str(refused["error"])
    assert up(bed) == ["one", "two"]
    bed.run("systemctl stop vllm@one")
    assert ask(bed, "three")["status"] == 200


def test_a_start_that_fails_says_what_why_says_and_is_not_repeated(bed: Nspawn) -> None:
    bed.write("/opt/one.fails", "")
    since = bed.out("date +%s.%N").strip()
    for _ in range(2):
        refused = ask(bed, "one")
        assert refused["status"] == 503
        assert "one failed to start: it exited before it was ready (exit status 1): RuntimeError: it cannot be" in str(refused["error"])
        assert "vllm-safe why one" in str(refused["error"])
    assert bed.out(f"journalctl --since=@{since} -u vllm@one -o cat | grep -c '^Starting'").strip() == "1"
    bed.run(f"rm /opt/one.fails; systemctl stop vllm@one; touch {CONFIG}")
    assert ask(bed, "one")["status"] == 200


def test_a_kill_of_the_gateway_loses_nothing_of_a_model(bed: Nspawn) -> None:
    ask(bed, "one")
    before = shown(bed, "vllm@one", "InvocationID")
    with ThreadPoolExecutor() as pool:
        cut = pool.submit(ask, bed, "one", stream=True, seconds=5)
        bed.wait_for("it streams", lambda: 'requests_running{model="one"} 1' in bed.out(f"curl -sS {URL}/metrics"))
        bed.run("systemctl kill --signal=KILL vllm-gateway")
        assert "curl: (18)" in str(cut.result()["stderr"])
    bed.wait_for("it is back", lambda: bed.run(f"curl -sS {URL}/health", check=False).returncode == 0)
    assert ask(bed, "one")["status"] == 200
    assert shown(bed, "vllm@one", "InvocationID") == before


def test_a_stop_of_the_gateway_ends_streams_with_an_event(bed: Nspawn) -> None:
    ask(bed, "one")
    with ThreadPoolExecutor() as pool:
        cut = pool.submit(ask, bed, "one", stream=True, seconds=60)
        whole = pool.submit(ask, bed, "one", stream=True, seconds=4)
        bed.wait_for("they stream", lambda: 'requests_running{model="one"} 2' in bed.out(f"curl -sS {URL}/metrics"))
        bed.run("systemctl restart vllm-gateway")
        assert str(whole.result()["text"]).endswith("data: token\n\n")
        assert "the gateway was stopped in the middle of the answer" in str(cut.result()["text"])


def test_a_model_that_is_killed_in_a_stream_is_told_as_an_event(bed: Nspawn) -> None:
    ask(bed, "one")
    with ThreadPoolExecutor() as pool:
        cut = pool.submit(ask, bed, "one", stream=True, seconds=30)
        bed.wait_for("it streams", lambda: 'requests_running{model="one"} 1' in bed.out(f"curl -sS {URL}/metrics"))
        bed.run("systemctl kill --signal=KILL vllm@one")
        assert "the server of one ended in the middle of its answer" in str(cut.result()["text"])


def test_a_mistake_leaves_the_settings_from_before(bed: Nspawn) -> None:
    assert ask(bed, "one")["status"] == 200  # it runs: no start is prepared with a mistake in the configuration
    bed.write(CONFIG, "gateway: {prot: 1}")
    assert bed.run("systemctl reload vllm-gateway", check=False).returncode != 0
    assert ask(bed, "one")["status"] == 200


def test_an_edit_is_followed_without_a_restart(bed: Nspawn) -> None:
    pid = shown(bed, "vllm-gateway", "MainPID")
    bed.write(CONFIG, config(port=8081))
    bed.run("systemctl reload vllm-gateway")
    bed.wait_for("it listens there", lambda: bed.run("curl -sS http://127.0.0.1:8081/health", check=False).returncode == 0)
    assert shown(bed, "vllm-gateway", "MainPID") == pid


def test_a_key_of_the_gateway(bed: Nspawn) -> None:
    bed.run("(umask 077; echo secret > /etc/vllm-safe/gateway-key)")
    bed.write(CONFIG, config().replace("port: 8080}", "port: 8080, api_key_file: /etc/vllm-safe/gateway-key}"))
    bed.run("systemctl restart vllm-gateway")
    assert ask(bed, "one")["status"] == 401
    assert bed.out(f"curl -sS -o /dev/null -w '%{{http_code}}' -H 'Authorization: Bearer secret' {URL}/v1/models") == "200"
    bed.write(CONFIG, config())
    bed.run("systemctl restart vllm-gateway")
    assert ask(bed, "one")["status"] == 200


def test_three_models_of_which_two_fit_under_mixed_load(bed: Nspawn) -> None:
    with ThreadPoolExecutor() as pool:
        load = pool.submit(bed.out, ["python3", "/opt/load.py", "25"])
        most = 0
        while not load.done():
            most = max(most, len(up(bed)))
            time.sleep(0.1)
        found = json.loads(load.result())
    assert found["wrong"] == []
    assert set(found["counts"]) == set(NAMES)
    assert most <= 2
    assert found["longest"] < 60
    assert resident(bed) < 40


@pytest.mark.engine
def test_the_client_of_openai_and_two_models_of_the_real_vllm(bed: Nspawn) -> None:
    said = bed.run([f"{engine.ENGINES}/current/bin/python", "/opt/client.py"], timeout=400).stdout.splitlines()
    assert "('demo', 'stopped')" in said[0]
    assert said[1:] == ["demo 3 True {'demo'}", "other 3 True {'other'}", "model_not_found"]
    assert shown(bed, "vllm@demo", "ActiveState") == "inactive"  # both do not fit


def test_an_upgrade_restarts_the_gateway_and_no_model(bed: Nspawn, deb: Path) -> None:
    assert ask(bed, "one")["status"] == 200
    before = [shown(bed, unit, "InvocationID") for unit in ("vllm@one", "vllm-gateway")]
    bed.put(deb, "/root/again.deb")
    bed.run("dpkg --install /root/again.deb")
    after = [shown(bed, unit, "InvocationID") for unit in ("vllm@one", "vllm-gateway")]
    assert [old == new for old, new in zip(before, after, strict=True)] == [True, False]
    assert ask(bed, "one")["status"] == 200


def test_a_removal_ends_it(machine: Nspawn) -> None:
    machine.run("apt-get purge -y -q vllm-safe")
    assert machine.out("systemctl list-units --all --no-legend 'vllm*'") == ""
    assert machine.run(f"curl -sS {URL}/health", check=False).returncode == 7
