"""What is planned before a load decides the start, and what vLLM reports at a start decides the next plan."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.beds.gpu_machine import TINY, gpu_machine, tell
from tests.beds.nspawn import Nspawn
from tests.truth.starts import MODELS_FILE
from vllm_safe.common.sizes import GIB

pytestmark = [pytest.mark.nspawn, pytest.mark.engine]

CONFIG = """\
swap: {{size: none}}
engine: {{find_links: {tiny}}}
models:
  large: {{model: /srv/models/large, plan: {plan}, args: {{max-model-len: 8192}}}}
  small: {{model: /srv/models/small, port: 8001, args: {{max-model-len: 8192, enforce-eager: true}}}}
"""
# Of a start of vLLM 0.32.0 on two H200s, with the figures of another card.
PRINTED = """\
(Worker pid=64) INFO 11-28 17:29:15 [model_runner.py:424] Model loading took 0.94 GiB memory and 5.931616 seconds
(Worker pid=64) INFO 11-28 17:29:52 [gpu_worker.py:759] Available KV cache memory: 9.21 GiB
(EngineCore pid=46) INFO 11-28 17:29:53 [kv_cache_utils.py:2327] GPU KV cache size: 804,784 tokens, Maximum concurrency for 8,192 tokens
"""


@pytest.fixture(scope="module")
def bed(deb: Path) -> Iterator[Nspawn]:
    models = json.loads(MODELS_FILE.read_text())
    with gpu_machine(deb) as machine:
        for name, known in (("large", "qwen2.5-72b-instruct-gptq8"), ("small", "qwen2.5-0.5b")):
            machine.write(f"/srv/models/{name}/config.json", json.dumps(models[known]))
        machine.write("/srv/models/small/printed.txt", PRINTED)
        configure(machine, "refuse")
        tell(machine, "capability 8.6", "memory 12288 10 246")
        machine.run(["vllm-safe", "install"], timeout=300)
        yield machine


def configure(bed: Nspawn, plan: str) -> None:
    bed.write("/etc/vllm-safe/config.yaml", CONFIG.format(tiny=TINY, plan=plan))


def planned(bed: Nspawn, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(bed.run(["vllm-safe", "plan", name, "--json"], check=False).stdout)
    return found


def test_a_model_that_cannot_fit_is_refused_before_it_loads(bed: Nspawn) -> None:
    assert bed.run("systemctl start vllm@large", check=False, timeout=120).returncode != 0
    status = bed.out("systemctl show vllm@large --property=StatusText --value")
    assert "large cannot start: no memory would be left for the KV cache" in status
    assert bed.out("systemctl show vllm@large --property=SubState --value") == "failed", "it is not tried again"
    checked = bed.run(["vllm-safe", "check"], check=False).stdout
    assert "fail  large cannot start: no memory would be left" in checked
    assert "models.large.plan: warn" in checked
    assert "pass  small fits: " in checked


def test_with_warn_it_is_tried_all_the_same(bed: Nspawn) -> None:
    configure(bed, "warn")
    bed.run("systemctl start vllm@large", timeout=120)
    assert "warning: large cannot start" in bed.out("journalctl --boot --unit vllm@large --output cat")
    bed.run("systemctl stop vllm@large", timeout=60)
    configure(bed, "refuse")


def test_the_second_plan_has_what_vllm_reported(bed: Nspawn) -> None:
    before = planned(bed, "small")
    assert before["starts"] is True
    assert "kv_tokens" not in before["exact"]
    bed.run("systemctl start vllm@small", timeout=120)
    bed.wait_for("the record of it", lambda: "kv_tokens" in planned(bed, "small")["exact"])
    after = planned(bed, "small")
    assert (after["kv_tokens"], after["kv_bytes_per_gpu"]) == (804_784, [int(9.21 * GIB)])
    assert after["weights_bytes_per_gpu"] == [int(0.94 * GIB)]
    bed.run("systemctl stop vllm@small", timeout=60)
