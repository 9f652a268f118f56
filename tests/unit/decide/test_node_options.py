"""What follows from `nodes`: rank, options, environment, and what must be the same on all machines."""

from __future__ import annotations

import pytest

from tests.builders.situations import situation_of
from vllm_safe.common.findings import Level
from vllm_safe.config.settings import Config, Engine, Model
from vllm_safe.contract.launch_file import Launch
from vllm_safe.decide.limits import decide_budget
from vllm_safe.decide.node_options import find_rank
from vllm_safe.decide.serve_command import decide_launch, decide_server
from vllm_safe.decide.start_checks import check_key, check_nodes, check_port
from vllm_safe.host.host_facts import Host
from vllm_safe.host.start_facts import StartFacts

MODEL = Model(model="a/b", nodes=("gpu1", "gpu2"), host="0.0.0.0", args={"tensor-parallel-size": 16})  # noqa: S104 - a setting


def _launch(name: str, model: Model = MODEL) -> Launch:
    config, host = Config(models={"big": model}), Host(memory=1 << 36, cpus=64, name=name)
    return decide_launch(config, "big", decide_server(config, host, "big", {}), decide_budget(config, host).of("big"), "vllm 0.32.0")


@pytest.mark.parametrize(
    ("nodes", "name", "rank"),
    [
        (("gpu1", "gpu2"), "gpu2", 1),
        (("gpu1", "gpu2"), "GPU1", 0),
        (("gpu1", "gpu2"), "gpu2.example.org", 1),
        (("gpu1.example.org", "gpu2.example.org"), "gpu2", 1),
        (("gpu1.example.org", "gpu1.example.net"), "gpu1.example.net", 1),
        (("gpu1", "gpu2"), "gpu3", None),
        (("gpu1", "gpu2"), "", None),
    ],
)
def test_the_rank_follows_from_the_host_name(nodes: tuple[str, ...], name: str, rank: int | None) -> None:
    assert find_rank(Model(model="a/b", nodes=nodes), name) == rank


def test_the_first_machine_answers_and_the_others_do_not() -> None:
    first, second = _launch("gpu1"), _launch("gpu2")
    assert (first.nodes, first.rank, first.nodes_port) == (("gpu1", "gpu2"), 0, 29500)
    common = {"nnodes": 2, "master-addr": "gpu1", "master-port": 29501, "distributed-executor-backend": "mp"}
    for launch, rank in ((first, 0), (second, 1)):
        assert common.items() <= (launch.serve_args or {}).items()
        assert (launch.serve_args or {})["node-rank"] == rank
    assert "headless" not in (first.serve_args or {})
    assert (second.serve_args or {})["headless"] is True
    assert (first.health, first.metrics, first.completions) != ("", "", "")
    assert (second.health, second.metrics, second.completions) == ("", "", "")


def test_what_must_be_the_same_is_the_same_on_machines_that_differ_only_in_their_place() -> None:
    assert _launch("gpu1").agreed == _launch("gpu2").agreed
    agreed = _launch("gpu1").agreed or {}
    assert (agreed["the engine"], agreed["args.tensor-parallel-size"]) == ("vllm 0.32.0", "16")
    riser = Model(model="a/b", nodes=("gpu1", "gpu2"), args={"tensor-parallel-size": 16}, profile="pcie-riser", stop_grace=9.0)
    assert _launch("gpu2", riser).agreed == agreed


def test_long_values_are_compared_by_a_checksum() -> None:
    texts = [f"{'x' * 1000}{end}" for end in "ab"]
    models = [Model(model="a/b", nodes=("gpu1", "gpu2"), args={"chat-template": text}) for text in texts]
    agreed = [(_launch("gpu1", model).agreed or {})["args.chat-template"] for model in models]
    assert agreed[0] != agreed[1]
    assert {len(text) for text in agreed} == {100 + len("... (01234567)")}


def test_workers_are_not_bound_to_loopback_and_are_counted_by_machine() -> None:
    config, host = Config(models={"big": MODEL}), Host(cpus=2, name="gpu2")
    server = decide_server(config, host, "big", {})
    assert server.world_size == 8
    assert not {"VLLM_HOST_IP", "NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"} & set(server.environment)
    assert server.environment["VLLM_WORKER_MULTIPROC_METHOD"].value == "fork"
    assert server.environment["VLLM_ENABLE_STARTUP_PLAN"].value == "0"


def test_a_machine_that_is_not_named_is_refused() -> None:
    config = Config(models={"big": MODEL}, engine=Engine())
    found = check_nodes(situation_of(config, Host(name="gpu9"), "big", StartFacts()))
    assert found
    assert (found.level, found.what) == (Level.FAIL, "this machine is gpu9, which is not one of the machines of big: gpu1, gpu2")
    found = check_nodes(situation_of(config, Host(name="gpu2"), "big", StartFacts()))
    assert found
    assert (found.level, found.what) == (Level.PASS, "this machine is gpu2, number 2 of the 2 machines of big")


def test_a_machine_that_answers_nobody_needs_neither_port_nor_key() -> None:
    config, facts = Config(models={"big": MODEL}), StartFacts(addresses=frozenset({"0.0.0.0"}))  # noqa: S104 - a setting
    taken = Host(name="gpu2", listening=frozenset({("127.0.0.1", 8000)}))
    assert check_port(situation_of(config, taken, "big", facts)).level is Level.PASS
    assert check_key(situation_of(config, taken, "big", facts)) is None


@pytest.mark.parametrize(("address", "level"), [("0.0.0.0", Level.FAIL), ("10.0.0.1", Level.FAIL), ("127.0.0.1", Level.PASS)])  # noqa: S104 - compared
def test_the_ports_between_machines_are_needed_on_the_first(address: str, level: Level) -> None:
    config = Config(models={"big": MODEL})
    for port in (29500, 29501):
        found = check_port(situation_of(config, Host(name="gpu1", listening=frozenset({(address, port)})), "big", StartFacts()))
        assert (found.level, f"port {port}" in found.what) == (level, level is Level.FAIL)
        assert (
            check_port(situation_of(config, Host(name="gpu2", listening=frozenset({(address, port)})), "big", StartFacts())).level
            is Level.PASS
        )
