"""What the network between the machines of a model costs, and what else a plan counts by machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.truth.starts import MODELS_FILE, model_config
from vllm_safe.common.sizes import GIB
from vllm_safe.config.settings import Config, Model
from vllm_safe.decide.plan_inputs import planned_server
from vllm_safe.decide.serve_command import decide_server
from vllm_safe.driver.card_facts import NvmlCard
from vllm_safe.host.host_facts import Host
from vllm_safe.plan.host_needs import HostLimits, decide_host_needs
from vllm_safe.plan.network import network_bytes, network_line
from vllm_safe.plan.plan_facts import read_plan_facts
from vllm_safe.plan.serving import Serving
from vllm_safe.plan.start_plan import decide_start_plan

BIG = model_config("qwen2.5-72b-instruct-gptq8")  # 80 layers, 8192 values of two bytes


@pytest.mark.parametrize(
    ("tensor", "pipeline", "machines", "expected"),
    [
        (16, 1, 2, 160 * 8192 * 2),  # a ring of two: each sends as much as there is
        (16, 1, 4, int(1.5 * 160 * 8192 * 2)),
        (8, 2, 2, 2 * 8192 * 2),  # a stage on each machine
        (4, 4, 2, 2 * 8192 * 2),
        (8, 2, 4, 80 * 8192 * 2),  # each of two stages on two machines
    ],
)
def test_bytes_of_a_token(tensor: int, pipeline: int, machines: int, expected: int) -> None:
    assert network_bytes(BIG, Serving(tensor_parallel=tensor, pipeline_parallel=pipeline), machines)[0] == expected


def test_the_line_says_what_a_prompt_takes() -> None:
    line = network_line(BIG, Serving(tensor_parallel=16), 2)
    assert line.text == "2.5 MiB"
    assert line.why.endswith("160 all-reduces (tensor parallel); 1024 tokens of a prompt take 22 s at 1 Gbit/s, 2 s at 10 Gbit/s")


def test_ram_is_that_of_the_workers_of_one_machine() -> None:
    alone = decide_host_needs(Serving(tensor_parallel=8), HostLimits())
    together = decide_host_needs(Serving(tensor_parallel=16), HostLimits(), machines=2)
    assert (together.memory, together.shared) == (alone.memory, alone.shared)


def test_a_plan_has_the_gpus_of_all_machines(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(json.loads(MODELS_FILE.read_text())["qwen2.5-7b"]))
    model = Model(model=str(tmp_path), nodes=("gpu1", "gpu2"), args={"tensor-parallel-size": 4})
    server = decide_server(Config(models={"big": model}), Host(name="gpu2"), "big", {})
    cards = (NvmlCard("RTX 3090", (8, 6), memory=24 * GIB),) * 2
    facts = read_plan_facts(planned_server("big", str(tmp_path), server), cards, tmp_path)
    whole = decide_start_plan("big", facts, HostLimits())
    assert (whole.starts, len(whole.cards), len(whole.plan.weights), whole.plan.unknown) == (True, 4, 4, ())
    assert whole.host.lines[-1].label == "network"
    assert "each of the 2 machines is taken to have the GPUs of this one" in whole.notes
