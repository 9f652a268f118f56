"""What the gateway knows of each model: addresses, names, and what it needs of GPUs and RAM."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.truth.starts import MODELS_FILE
from vllm_safe.common.sizes import GIB, Amount
from vllm_safe.config.settings import Config, GatewaySection, Model, ModelLimits
from vllm_safe.contract.gateway_file import GatewayFile
from vllm_safe.decide.gateway_settings import Claimant, GatewayFacts, decide_gateway
from vllm_safe.decide.limits import decide_budget
from vllm_safe.decide.plan_inputs import planned_server
from vllm_safe.decide.serve_command import decide_server
from vllm_safe.driver.card_facts import CardProcess, NvmlCard
from vllm_safe.host.host_facts import Host
from vllm_safe.plan.plan_facts import read_plan_facts

HOST = Host(memory=64 * GIB, cpus=8)
CARD = NvmlCard("RTX 3060", (8, 6), memory=12 * GIB, reserved=GIB // 4)
CARDS = (CARD,) * 4


def decide(folder: Path | None = None, cards: tuple[NvmlCard, ...] = CARDS, host: Host = HOST, **models: Model) -> GatewayFile:
    """Return the settings. folder: has the files of all models; None: they were not fetched."""
    config = Config(models=models, gateway=GatewaySection(port=8081, wait=60.0))
    budget, claimants = decide_budget(config, host), {}
    for name, model in models.items():
        server = decide_server(config, host, name, {})
        plan = None
        if folder and model.model:
            plan = read_plan_facts(planned_server(name, str(folder), server), cards, folder)
        claimants[name] = Claimant(server, plan)
    return decide_gateway(config, GatewayFacts(host, budget, cards, claimants))


@pytest.fixture
def fetched(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(json.loads(MODELS_FILE.read_text())["qwen2.5-7b"]))
    return tmp_path


def test_addresses_and_names() -> None:
    found = decide(
        one=Model(model="a/b", on_demand=True, idle_timeout=600.0, stop_grace=45.0),
        two=Model(model="a/b", port=8002, host="0.0.0.0", args={"served-model-name": ["gpt", "two"]}),  # noqa: S104 - a text
    )
    one, two = found.models
    assert (found.host, found.port, found.wait) == ("127.0.0.1", 8081, 60.0)
    assert (one.name, one.served, one.socket, one.address) == ("one", ("one",), "/run/vllm-safe/on-demand/one.sock", ("127.0.0.1", 18000))
    assert (one.on_demand, one.idle_timeout, one.stop_grace) == (True, 600.0, 45.0)
    assert (two.served, two.socket, two.address, two.on_demand, two.idle_timeout) == (
        ("gpt", "two"),
        "",
        ("127.0.0.1", 8002),
        False,
        None,
    )


def test_a_planned_model_takes_its_share_of_its_gpus_and_the_ram_of_its_processes(fetched: Path) -> None:
    (one,) = decide(fetched, one=Model(model="a/b", gpus=(2, 1), args={"tensor-parallel-size": 2, "gpu-memory-utilization": 0.5})).models
    assert sorted(one.needs) == [1, 2]
    # Half of what CUDA sees, and what CUDA and NCCL take beside it.
    assert all(5.8 * GIB < size < 6.6 * GIB for size in one.needs.values())
    assert 2 * GIB < one.memory < 8 * GIB


def test_a_size_of_the_cache_counts_in_place_of_a_share(fetched: Path) -> None:
    card = replace(CARD, memory=48 * GIB)
    (one,) = decide(fetched, (card,), one=Model(model="a/b", args={"kv-cache-memory-bytes": "2G"})).models
    assert 16 * GIB < one.needs[0] < 22 * GIB


def test_without_its_files_a_model_needs_what_its_arguments_say() -> None:
    (one,) = decide(one=Model(model="a/b", args={"tensor-parallel-size": 2, "gpu-memory-utilization": 0.5})).models
    assert one.needs == {0: 6 * GIB, 1: 6 * GIB}


def test_another_server_needs_all_of_the_gpus_that_it_sees_and_its_limit_of_ram() -> None:
    limits = ModelLimits(memory_max=Amount(4 * GIB))
    one, two, none = decide(
        one=Model(command=("/bin/x",), gpus=(3,), limits=limits),
        two=Model(command=("/bin/x",), port=8002),
        none=Model(command=("/bin/x",), port=8003, env={"CUDA_VISIBLE_DEVICES": ""}),
    ).models
    assert (one.needs, one.memory) == ({3: 12 * GIB}, 4 * GIB)
    assert sorted(two.needs) == [0, 1, 2, 3]
    assert none.needs == {}


def test_models_have_what_the_driver_and_other_programs_leave() -> None:
    desktop = CardProcess(7, GIB, "Xorg", "")
    model = CardProcess(8, 9 * GIB, "VLLM::Worker", "vllm@one.service")
    found = decide(cards=(replace(CARD, processes=(desktop, model)), CARD), one=Model(model="a/b"))
    assert found.gpus == {0: int(10.75 * GIB), 1: int(11.75 * GIB)}
    assert 50 * GIB < found.memory < 64 * GIB


def test_requests_for_a_model_on_several_machines_go_to_the_first() -> None:
    for name, first in (("gpu1", ""), ("gpu2", "gpu1")):
        model = Model(model="a/b", nodes=("gpu1", "gpu2"), args={"tensor-parallel-size": 2})
        assert decide(host=replace(HOST, name=name), one=model).models[0].first == first
