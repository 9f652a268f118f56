"""The cost of the gateway: the same small requests and streams sent directly, through nginx as a plain proxy, and through the gateway."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from statistics import median

from tests.beds import trees
from tests.beds.nspawn import Nspawn
from tests.bench.row import Row

ROUNDS = 3
PORTS = {"direct": 8001, "nginx": 8181, "gateway": 8080}
LOAD = Path(__file__).with_name("http_load.py")
NGINX = """
worker_processes 1;
worker_rlimit_nofile 8192;
events { worker_connections 4096; }
http {
    access_log off;
    upstream server { server 127.0.0.1:8001; keepalive 256; }
    server {
        listen 127.0.0.1:8181;
        keepalive_requests 100000;
        location / {
            proxy_pass http://server;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;
        }
    }
}
"""
CONFIG = """
swap: {size: none}
gateway: {enabled: true}
models:
  bench: {command: [/usr/bin/python3, /opt/http_load.py, serve, '8001'], port: 8001, limits: {memory_max: 40%}}
  other: {command: [/usr/bin/python3, /opt/http_load.py, serve, '18002'], port: 8002, on_demand: true, limits: {memory_max: 40%}}
  third: {command: [/usr/bin/python3, /opt/http_load.py, serve, '18003'], port: 8003, on_demand: true, limits: {memory_max: 40%}}
"""
ASK = 'curl -sS -o /dev/null http://127.0.0.1:8080/v1/completions -d \'{"model": "%s"}\''


def measure(deb: Path) -> list[Row]:
    """Measure everything in one bed, one after the other."""
    with Nspawn(trees.WITH_AIOHTTP, network=False) as bed:
        bed.install(deb)
        bed.put(LOAD, "/opt/http_load.py")
        bed.write("/etc/nginx/nginx.conf", NGINX)
        bed.write("/etc/vllm-safe/config.yaml", CONFIG)
        bed.run("systemctl restart nginx && systemctl start vllm@bench vllm-gateway")
        figures = {kind: {name: _rounds(bed, kind, name) for name in PORTS} for kind in ("latency", "streams", "many")}
        resident = _resident(bed)
        bed.run("systemctl stop vllm@bench")
        return [*_rows(figures), Row("gateway: resident after 256 connections", resident, 40, "MiB", ""), _switch(bed)]


def _rounds(bed: Nspawn, kind: str, name: str) -> dict[str, float]:
    """Return the median of each figure."""
    found = [json.loads(bed.out(["python3", "/opt/http_load.py", kind, str(PORTS[name])], timeout=300)) for _ in range(ROUNDS)]
    return {figure: median(one[figure] for one in found) for figure in found[0]}


def _rows(figures: dict[str, dict[str, dict[str, float]]]) -> list[Row]:
    latency, streams, many = figures["latency"], figures["streams"], figures["many"]

    def beside(kind: str, figure: str, digits: int) -> str:
        return ", ".join(f"{name} {figures[kind][name][figure]:.{digits}f}" for name in PORTS)

    added = {figure: latency["gateway"][figure] - latency["direct"][figure] for figure in ("median", "p99")}
    missing = 100 * (1 - streams["gateway"]["rate"] / streams["direct"]["rate"])
    return [
        Row("gateway: latency added to a small request, median", added["median"], 2, "ms", beside("latency", "median", 2)),
        Row("gateway: latency added to a small request, p99", added["p99"], 5, "ms", beside("latency", "p99", 2)),
        Row("gateway: tokens/s lost at 64 streams", missing, 5, "%", beside("streams", "rate", 0)),
        Row("gateway: requests lost, of 10,000", many["gateway"]["lost"], 0, "requests", f"requests/s: {beside('many', 'rate', 0)}"),
    ]


def _resident(bed: Nspawn) -> float:
    pid = bed.properties("vllm-gateway.service", "MainPID")["MainPID"]
    return int(re.findall(r"VmRSS:\s+(\d+)", bed.read(f"/proc/{pid}/status"))[0]) / 1024


def _switch(bed: Nspawn) -> Row:
    """Have one model take the place of another. Measure the time from the request to the start of the preparation."""
    took = []
    for name in ("other", "third") * ROUNDS:
        bed.run(ASK % name)
        time.sleep(3)  # a model that has loaded stays for as long as its load took
        following = "third" if name == "other" else "other"
        begin = float(bed.out(["python3", "-c", "import time; print(time.monotonic())"]))
        bed.run(ASK % following)
        unit = bed.properties(f"vllm-safe-prepare@{following}.service", "ExecMainStartTimestampMonotonic")
        took.append(int(unit["ExecMainStartTimestampMonotonic"]) / 1e6 - begin)
    beside = f"the longest of {len(took)}, including the start of curl"
    return Row("gateway: start of a switch after its request", max(took), 0.3, "s", beside)
